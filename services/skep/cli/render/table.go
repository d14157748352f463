package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Column is one placeholder of a list and its heading.
type Column struct {
	Field  string // .ID
	Header string // ID
}

// Row is one line: its placeholders by field.
type Row map[string]string

// Table is a list that can be printed in every form.
type Table struct {
	Columns []Column
	// Default is the template of the table form; empty = every column in order.
	Default string
	// Key is the field that --quiet prints.
	Key  string
	Rows []Row
}

// ErrFormat wraps mistakes in a --format template.
type ErrFormat struct{ Err error }

func (e *ErrFormat) Error() string { return "template parsing error: " + e.Err.Error() }
func (e *ErrFormat) Unwrap() error { return e.Err }

// Print writes the table: format is "" or "table", "table TEMPLATE", "json", or a Go template per row.
func (t *Table) Print(w io.Writer, format string, quiet bool) error {
	if quiet && (format == "" || format == "table") {
		for _, r := range t.Rows {
			if _, err := fmt.Fprintln(w, r[t.Key]); err != nil {
				return err
			}
		}
		return nil
	}
	tmpl, table := strings.CutPrefix(format, "table")
	tmpl = strings.TrimSpace(tmpl)
	switch {
	case format == "json" || format == "{{json .}}":
		for _, r := range t.Rows {
			if err := writeJSONLine(w, r); err != nil {
				return err
			}
		}
		return nil
	case format == "" || table && tmpl == "":
		tmpl, table = t.defaultTemplate(), true
	}
	tmpl = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(tmpl)
	tp, err := NewTemplate(tmpl)
	if err != nil {
		return &ErrFormat{err}
	}
	tp.Option("missingkey=error")
	if !table {
		for _, r := range t.Rows {
			if err := execute(w, tp, r); err != nil {
				return err
			}
		}
		return nil
	}
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 10, 1, 3, ' ', 0)
	head := Row{}
	for _, c := range t.Columns {
		head[c.Field] = c.Header
	}
	if err := execute(tw, tp, head); err != nil {
		return err
	}
	for _, r := range t.Rows {
		if err := execute(tw, tp, r); err != nil {
			return err
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err = w.Write(b.Bytes())
	return err
}

func (t *Table) defaultTemplate() string {
	if t.Default != "" {
		return t.Default
	}
	var f []string
	for _, c := range t.Columns {
		f = append(f, "{{."+c.Field+"}}")
	}
	return strings.Join(f, "\t")
}

func execute(w io.Writer, tp *template.Template, r Row) error {
	var b bytes.Buffer
	if err := tp.Execute(&b, r); err != nil {
		return &ErrFormat{err}
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

func writeJSONLine(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// NewTemplate parses a --format template with Docker's functions.
func NewTemplate(text string) (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			err := e.Encode(v)
			return strings.TrimSpace(b.String()), err
		},
		"split": strings.Split, "join": strings.Join, "title": title, "lower": strings.ToLower, "upper": strings.ToUpper,
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string {
			if len(s) > n {
				return s[:n]
			}
			return s
		},
	}).Parse(text)
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// JSON writes API objects as one document: an array of protojson objects with the field names of the .proto files.
// The form is stable: fields are added, never renamed.
func JSON[M proto.Message](w io.Writer, msgs []M) error {
	list := make([]json.RawMessage, 0, len(msgs))
	for _, m := range msgs {
		b, err := protoJSON(m)
		if err != nil {
			return err
		}
		list = append(list, b)
	}
	return indented(w, list)
}

// JSONValue writes a value of skep's own that is no API object; its json tags are part of the stable form.
func JSONValue(w io.Writer, v any) error { return indented(w, v) }

// JSONObject writes one API object.
func JSONObject(w io.Writer, m proto.Message) error {
	b, err := protoJSON(m)
	if err != nil {
		return err
	}
	return indented(w, json.RawMessage(b))
}

func protoJSON(m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
}

// indented goes through encoding/json: protojson varies its white space on purpose.
func indented(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "    ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// JSONLine writes one API object on one line.
func JSONLine(w io.Writer, m proto.Message) error {
	b, err := protoJSON(m)
	if err != nil {
		return err
	}
	return writeJSONLine(w, json.RawMessage(b))
}

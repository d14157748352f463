package render

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"strings"
	"text/tabwriter"
	"text/template"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"skep.dev/services/skep/cli/plain"
)

// Column is one placeholder of a list and its heading.
type Column struct {
	Field  string // .ID
	Header string // ID
}

// Row is one line: its placeholders by field.
type Row map[string]string

// line is a row as templates and JSON get it: with a bool where Docker has one.
type line map[string]any

// Table is a list that can be printed in every form.
type Table struct {
	Columns []Column
	// Default is the template of the table form; empty = every column in order.
	Default string
	// Key is the field that --quiet prints.
	Key  string
	Rows []Row
	// Under marks rows that stand below the one before: the table form draws their Name as a branch of it.
	Under map[int]bool
	// Bools are the fields that are true or false.
	Bools []string
	// Wide leaves long values whole where they stand before others.
	Wide bool
}

// One endless host name must not push every row off the screen: where others follow, maxCell is how many characters of
// a value are shown and MaxName how many of a node's own words for itself.
const (
	maxCell = 256
	MaxName = 64
)

// ErrFormat wraps mistakes in a --format template.
type ErrFormat struct{ Err error }

func (e *ErrFormat) Error() string { return "template parsing error: " + e.Err.Error() }
func (e *ErrFormat) Unwrap() error { return e.Err }

// Print writes the table: format is "" or "table", "table TEMPLATE", "json", or a Go template per row.
func (t *Table) Print(w io.Writer, format string, quiet bool) error {
	if quiet && (format == "" || format == "table") {
		for _, r := range t.Rows {
			if _, err := plain.Fprintf(w, "%s\n", r[t.Key]); err != nil {
				return err
			}
		}
		return nil
	}
	tmpl, table := strings.CutPrefix(format, "table")
	tmpl = strings.TrimSpace(tmpl)
	cut := false
	switch {
	case format == "json" || format == "{{json .}}":
		for _, r := range t.Rows {
			if err := writeJSONLine(w, t.line(r)); err != nil {
				return err
			}
		}
		return nil
	case format == "" || table && tmpl == "":
		tmpl, table = t.defaultTemplate(), true
		cut = !t.Wide
	}
	tmpl = unescape(tmpl)
	tp, err := NewTemplate(tmpl)
	if err != nil {
		return &ErrFormat{err}
	}
	tp.Option("missingkey=error")
	head := line{}
	for _, c := range t.Columns {
		head[c.Field] = c.Header
	}
	if err := Execute(io.Discard, tp, head); unknownField(err) {
		return err // also where there is no row to find it at
	}
	if !table {
		for _, r := range t.Rows {
			if err := Execute(w, tp, t.line(r)); err != nil {
				return err
			}
		}
		return nil
	}
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 10, 1, 3, ' ', 0)
	if err := Execute(tw, tp, head); err != nil {
		return err
	}
	last := tmpl[strings.LastIndexByte(tmpl, '\t')+1:]
	for i, r := range t.Rows {
		if t.Under[i] {
			r = maps.Clone(r)
			r["Name"] = ` \_ ` + r["Name"]
		}
		if cut {
			r = r.cut(last)
		}
		if err := Execute(tw, tp, t.line(r)); err != nil {
			return err
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err = w.Write(b.Bytes())
	return err
}

func (t *Table) line(r Row) line {
	out := make(line, len(r))
	for k, v := range r {
		out[k] = v
	}
	for _, k := range t.Bools {
		out[k] = r[k] == "true"
	}
	return out
}

// cut shortens the values of a row, but not those that last, the template of the last column, shows.
func (r Row) cut(last string) Row {
	out := make(Row, len(r))
	for k, v := range r {
		switch {
		case strings.Contains(last, "."+k):
			out[k] = v
		case k == "Hostname", k == "Node", k == "EngineVersion":
			out[k] = plain.Cut(v, MaxName)
		default:
			out[k] = plain.Cut(v, maxCell)
		}
	}
	return out
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

// Execute writes what a template makes of v, on a line of its own.
func Execute(w io.Writer, tp *template.Template, v any) error {
	var b bytes.Buffer
	if err := tp.Execute(&b, v); err != nil {
		return &ErrFormat{withFields(err, tp, v)}
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

func writeJSONLine(w io.Writer, v any) error {
	b, err := jsonLine(v)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// jsonLine is v as JSON on one line.
func jsonLine(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return plain.JSON(b.Bytes()), err
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
	_, err := w.Write(plain.JSON(b.Bytes()))
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

// unescape reads \t and \n of a template as Docker does.
func unescape(tmpl string) string {
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(tmpl)
}

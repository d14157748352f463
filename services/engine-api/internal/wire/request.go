package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Request is one of the API's.
type Request struct {
	*http.Request
	Version Version
	Query   url.Values
	vars    map[string]string
}

// Var is what stands in the path in place of {name}.
func (r *Request) Var(name string) string { return r.vars[name] }

// Bool is a query parameter as Docker reads it: absent, "", 0, no, false and none are false.
func (r *Request) Bool(name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.Query.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// ObjectVersion is the query parameter "version" of updates: the one that the change was made from.
func (r *Request) ObjectVersion() (uint64, error) {
	text := r.Query.Get("version")
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil || v == 0 {
		return 0, Invalid("invalid version '%s': the version of the object that the change was made from is needed", text)
	}
	return v, nil
}

// Filters reads the query parameter "filters".
func (r *Request) Filters(known ...string) (Filters, error) {
	return ParseFilters(r.Query.Get("filters"), known...)
}

// IsJSON refuses a body that says it is something else.
func (r *Request) IsJSON() error {
	if ct := r.Header.Get("Content-Type"); ct != "" || r.ContentLength > 0 {
		if kind, _, err := mime.ParseMediaType(ct); err != nil || kind != "application/json" {
			return Invalid("unsupported Content-Type header (%s): must be 'application/json'", ct)
		}
	}
	return nil
}

// ReadJSON reads the body into v, whatever fields v does not have; unknown names the first of those, "" = none.
func (r *Request) ReadJSON(v any) (unknown string, _ error) {
	if err := r.IsJSON(); err != nil {
		return "", err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return "", err
		}
		return "", Invalid("read the request's body: %v", err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return "", Invalid("invalid JSON: got EOF while reading request body")
	}
	strict := json.NewDecoder(bytes.NewReader(body))
	strict.DisallowUnknownFields()
	err = strict.Decode(v)
	if err == nil {
		return "", ended(strict)
	}
	if field, is := strings.CutPrefix(err.Error(), "json: unknown field "); is {
		unknown, _ = strconv.Unquote(field)
		lenient := json.NewDecoder(bytes.NewReader(body))
		if err = lenient.Decode(v); err == nil {
			return unknown, ended(lenient)
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "", Invalid("invalid JSON: got EOF while reading request body")
	}
	return "", Invalid("invalid JSON: %v", err)
}

func ended(d *json.Decoder) error {
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Invalid("unexpected content after JSON")
	}
	return nil
}

// WriteJSON answers with a value.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client is gone if this fails; there is nobody left to tell
	return nil
}

// None answers with a status and nothing else.
func None(w http.ResponseWriter, status int) error {
	w.WriteHeader(status)
	return nil
}

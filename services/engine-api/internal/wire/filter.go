package wire

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Filters are what the query parameter "filters" holds: several values of one key are OR, different keys AND.
type Filters map[string][]string

// mostFilterValues bounds one request's filters: a client that asks for a thousand services by id is at the limit.
const mostFilterValues = 2000

// ParseFilters reads both forms: {"key":{"value":true}} and that of old clients, {"key":["value"]}. Keys that are not among known
// are refused with Docker's text; a key without values filters nothing.
func ParseFilters(text string, known ...string) (Filters, error) {
	out := Filters{}
	if text == "" {
		return out, nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &keys); err != nil {
		return nil, Invalid("invalid filter: %v", err)
	}
	n := 0
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		var set map[string]bool
		var list []string
		if err := json.Unmarshal(keys[key], &set); err == nil {
			list = slices.Sorted(maps.Keys(set))
		} else if err := json.Unmarshal(keys[key], &list); err != nil {
			return nil, Invalid("invalid filter: the values of '%s' are neither a list nor a map of texts", key)
		}
		if !slices.Contains(known, key) {
			return nil, Invalid("invalid filter '%s'", key)
		}
		if n += len(list); n > mostFilterValues {
			return nil, Invalid("invalid filter: more than %d values", mostFilterValues)
		}
		if len(list) > 0 {
			out[key] = list
		}
	}
	return out, nil
}

// Has reports whether a key filters.
func (f Filters) Has(key string) bool { return len(f[key]) > 0 }

// Take returns the values of a key and leaves the others.
func (f Filters) Take(key string) []string {
	v := f[key]
	delete(f, key)
	return v
}

// TakeBool takes a filter that is yes or no; ok reports whether it was there.
func (f Filters) TakeBool(key string) (is, ok bool, err error) {
	vs := f.Take(key)
	if len(vs) == 0 {
		return false, false, nil
	}
	for i, v := range vs {
		b, perr := strconv.ParseBool(v)
		if perr != nil || i > 0 && b != is {
			return false, true, Invalid("invalid filter '%s=%s'", key, vs)
		}
		is = b
	}
	return is, true, nil
}

// Prefix: one of the values begins with one of those wanted, whatever the case.
func (f Filters) Prefix(key string, values ...string) bool {
	return f.any(key, func(want string) bool {
		return slices.ContainsFunc(values, func(v string) bool {
			return len(v) >= len(want) && strings.EqualFold(v[:len(want)], want)
		})
	})
}

// Exact: one of the values is one of those wanted.
func (f Filters) Exact(key string, values ...string) bool {
	return f.any(key, func(want string) bool { return slices.Contains(values, want) })
}

// Labels: "k" is a label whatever its value, "k=v" one with that value. All that are wanted must be there.
func (f Filters) Labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		k, v, with := strings.Cut(want, "=")
		if have, ok := labels[k]; !ok || with && have != v {
			return false
		}
	}
	return true
}

func (f Filters) any(key string, is func(string) bool) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], is)
}

package state

import (
	"sort"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// filters are docker's: several values of one key are OR, different keys AND.
type filters map[string][]string

// parseFilters refuses keys that mean nothing here, naming those that do.
func parseFilters(in []*skepv1.Filter, valid ...string) (filters, error) {
	out := filters{}
	for _, f := range in {
		ok := false
		for _, v := range valid {
			ok = ok || v == f.Key
		}
		if !ok {
			sort.Strings(valid)
			return nil, fault.Usage("invalid filter '%s': use %s", f.Key, strings.Join(valid, ", "))
		}
		out[f.Key] = append(out[f.Key], f.Values...)
	}
	return out, nil
}

// prefix: the value, whatever its case, begins with one of the wanted ones.
func (f filters) prefix(key string, values ...string) bool {
	want, ok := f[key]
	if !ok {
		return true
	}
	for _, w := range want {
		for _, v := range values {
			if len(v) >= len(w) && strings.EqualFold(v[:len(w)], w) {
				return true
			}
		}
	}
	return false
}

func (f filters) exact(key string, values ...string) bool {
	want, ok := f[key]
	if !ok {
		return true
	}
	for _, w := range want {
		for _, v := range values {
			if strings.EqualFold(v, w) {
				return true
			}
		}
	}
	return false
}

// labels: k matches a label of that name whatever its value, k=v that value.
func (f filters) labels(key string, labels map[string]string) bool {
	want, ok := f[key]
	if !ok {
		return true
	}
	for _, w := range want {
		k, v, hasValue := strings.Cut(w, "=")
		if have, ok := labels[k]; ok && (!hasValue || have == v) {
			return true
		}
	}
	return false
}

// checkValues refuses values that cannot occur, naming those that can.
func (f filters) checkValues(key string, valid ...string) error {
	for _, w := range f[key] {
		ok := false
		for _, v := range valid {
			ok = ok || strings.EqualFold(v, w)
		}
		if !ok {
			return fault.Usage("invalid value '%s' of filter '%s': use %s", w, key, strings.Join(valid, ", "))
		}
	}
	return nil
}

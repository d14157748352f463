package wire

import (
	"fmt"
	"strings"
	"testing"
)

func TestFiltersInBothForms(t *testing.T) {
	for _, text := range []string{`{"name":{"web":true,"db":true},"label":{"a=b":true}}`, `{"name":["web","db"],"label":["a=b"]}`} {
		f, err := ParseFilters(text, "name", "label", "id")
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(f["name"]) != "[db web]" && fmt.Sprint(f["name"]) != "[web db]" {
			t.Error(f)
		}
		for name, want := range map[string]bool{"web": true, "WEBSITE": true, "db1": true, "we": false, "": false} {
			if f.Prefix("name", name) != want {
				t.Errorf("%s: %v", name, !want)
			}
		}
		if !f.Prefix("id", "anything") || !f.Labels("label", map[string]string{"a": "b"}) || f.Labels("label", map[string]string{"a": "c"}) || f.Labels("label", nil) {
			t.Error("id or label")
		}
	}
}

func TestFiltersRefused(t *testing.T) {
	many := `{"id":["` + strings.Repeat(`x","`, mostFilterValues) + `x"]}`
	for text, want := range map[string]string{
		`{"colour":{"red":true}}`:  "invalid filter 'colour'",
		`{"colour":{}}`:            "invalid filter 'colour'",
		`{"name":"web"}`:           "invalid filter: the values of 'name' are neither a list nor a map of texts",
		`{"name":{"web":{"x":1}}}`: "invalid filter: the values of 'name' are neither a list nor a map of texts",
		`["name"]`:                 "invalid filter: json: ",
		`{"name"`:                  "invalid filter: unexpected end of JSON input",
		many:                       "invalid filter: more than 2000 values",
	} {
		_, err := ParseFilters(text, "name", "id")
		if err == nil || !strings.HasPrefix(err.Error(), want) || errorOf(err).Status != 400 {
			t.Errorf("%.40s: %v", text, err)
		}
	}
	for _, text := range []string{"", "{}", `{"name":{}}`, `{"name":[]}`, "null"} {
		if f, err := ParseFilters(text, "name"); err != nil || len(f) != 0 {
			t.Errorf("%q: %v %v", text, f, err)
		}
	}
}

func TestFilterYesOrNo(t *testing.T) {
	for text, want := range map[string]string{`["true"]`: "true true", `["0"]`: "false true", `{"1":true}`: "true true", `[]`: "false false"} {
		f, err := ParseFilters(`{"dangling":`+text+`}`, "dangling")
		if err != nil {
			t.Fatal(err)
		}
		is, ok, err := f.TakeBool("dangling")
		if got := fmt.Sprint(is, " ", ok); err != nil || got != want || f.Has("dangling") {
			t.Errorf("%s: %s %v", text, got, err)
		}
	}
	f, _ := ParseFilters(`{"dangling":["yes"]}`, "dangling")
	if _, _, err := f.TakeBool("dangling"); err == nil {
		t.Error("yes is no truth")
	}
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"name":{"web":true}}`)
	f.Add(`{"name":["web"],"id":{}}`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseFilters(text, "name", "id")
		if err != nil && errorOf(err).Status != 400 {
			t.Fatal(err)
		}
		for k, v := range got {
			if k != "name" && k != "id" || len(v) == 0 {
				t.Fatalf("%q: %v", text, got)
			}
		}
	})
}

package main

import (
	"flag"
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args, rest []string
		name       string
	}{
		{[]string{"m1", "--", "ls", "-name"}, []string{"m1", "ls", "-name"}, "lab"},
		{[]string{"-name", "x", "m1", "--", "ls"}, []string{"m1", "ls"}, "x"},
		{[]string{"m1", "-name", "x", "--", "skep", "--", "y"}, []string{"m1", "skep", "--", "y"}, "x"},
		{[]string{"m1", "ls", "-l"}, []string{"m1", "ls", "-l"}, "lab"},
		{[]string{"-name=x", "--", "ls", "-l"}, []string{"ls", "-l"}, "x"},
		{[]string{"m1"}, []string{"m1"}, "lab"},
		{nil, nil, "lab"},
	} {
		fs := flag.NewFlagSet("", flag.ContinueOnError)
		name := fs.String("name", "lab", "")
		rest, err := parse(fs, c.args)
		if err != nil || !reflect.DeepEqual(rest, c.rest) || *name != c.name {
			t.Errorf("parse %q: %q, name %s, %v; want %q, name %s", c.args, rest, *name, err, c.rest, c.name)
		}
	}
}

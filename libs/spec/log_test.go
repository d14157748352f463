package spec

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// What no node can log with is refused where it is written, with what there is.
func TestLogDrivers(t *testing.T) {
	driver := func(name string, kv ...string) *skepv1.LogDriver {
		d := &skepv1.LogDriver{Name: name, Options: map[string]string{}}
		for i := 0; i < len(kv); i += 2 {
			d.Options[kv[i]] = kv[i+1]
		}
		return d
	}
	for _, x := range []struct {
		d    *skepv1.LogDriver
		want LogOptions
		err  string
	}{
		{nil, LogOptions{MaxSize: 10 << 20, MaxFile: 3}, ""},
		{driver("json-file"), LogOptions{MaxSize: 10 << 20, MaxFile: 3}, ""},
		{driver("local", "max-size", "100K", "max-file", "7", "tag", "x"), LogOptions{MaxSize: 100 << 10, MaxFile: 7}, ""},
		{driver("", "max-size", "1.5mb"), LogOptions{MaxSize: 3 << 19, MaxFile: 3}, ""},
		{driver("none", "anything", "goes"), LogOptions{None: true, MaxSize: 10 << 20, MaxFile: 3}, ""},
		{driver("syslog"), LogOptions{}, `log-driver "syslog" is none that nodes have: use json-file, local or none`},
		{driver("JSON-file"), LogOptions{}, "use json-file, local or none"},
		{driver("local", "max-size", "1"), LogOptions{}, "log-opt max-size=1: not a size of at least 4k"},
		{driver("local", "max-size", "NaN"), LogOptions{}, "log-opt max-size=NaN"},
		{driver("local", "max-size", "-5m"), LogOptions{}, "log-opt max-size=-5m"},
		{driver("local", "max-size", "9999999999999g"), LogOptions{}, "log-opt max-size=9999999999999g"},
		{driver("local", "max-file", "0"), LogOptions{}, "log-opt max-file=0: not a number of at least 1"},
		{driver("json-file", "syslog-address", "x"), LogOptions{}, "log-opt syslog-address: unknown to the log driver json-file: use max-size or max-file"},
	} {
		got, err := ReadLog(x.d)
		if x.err == "" && (err != nil || x.want.MaxSize != 0 && got != x.want) || x.err != "" && (err == nil || !strings.Contains(err.Error(), x.err)) {
			t.Errorf("%v: %v %v, want %v %q", x.d, got, err, x.want, x.err)
		}
	}
}

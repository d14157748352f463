package spec

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// LogOptions are how a task's output is kept.
type LogOptions struct {
	None    bool
	MaxSize int64 // bytes of a file
	MaxFile int
}

// ReadLog reads a log driver and its options: what it refuses, no node can do. "" is json-file.
func ReadLog(d *skepv1.LogDriver) (LogOptions, error) {
	o := LogOptions{MaxSize: 10 << 20, MaxFile: 3}
	switch d.GetName() {
	case "none":
		o.None = true
		return o, nil
	case "", "json-file", "local":
	default:
		return o, fault.Invalid("log-driver %q is none that nodes have: use json-file, local or none", d.GetName())
	}
	for _, key := range slices.Sorted(maps.Keys(d.GetOptions())) {
		v := d.GetOptions()[key]
		switch key {
		case "max-size":
			n, err := logSize(v)
			if err != nil || n < 4096 {
				return o, fault.Invalid("log-opt max-size=%s: not a size of at least 4k (such as 10m)", v)
			}
			o.MaxSize = n
		case "max-file":
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				return o, fault.Invalid("log-opt max-file=%s: not a number of at least 1", v)
			}
			o.MaxFile = n
		case "labels", "env", "labels-regex", "env-regex", "tag", "compress", "mode", "max-buffer-size":
			// Docker's; they change nothing that is read back here.
		default:
			return o, fault.Invalid("log-opt %s: unknown to the log driver %s: use max-size or max-file", key, d.GetName())
		}
	}
	return o, nil
}

func logSize(s string) (int64, error) {
	s = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "b")
	mult := int64(1)
	for suffix, m := range map[string]int64{"k": 1 << 10, "m": 1 << 20, "g": 1 << 30} {
		if t, ok := strings.CutSuffix(s, suffix); ok {
			s, mult = t, m
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if f *= float64(mult); err != nil || !(f >= 0 && f <= 1<<50) { // NaN is neither
		return 0, errors.New("not a size")
	}
	return int64(f), nil
}

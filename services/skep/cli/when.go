package cli

import (
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// parseWhen reads --since and --until: a time (RFC 3339, with or without its zone, or seconds since 1970) or how long
// ago (10m).
func parseWhen(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if at, ok := readWhen(s, now); ok {
		if ts := timestamppb.New(at); ts.CheckValid() == nil {
			return ts, nil
		}
	}
	return nil, Usagef("invalid --%s %q: write a time (2026-01-02T15:04:05Z, or seconds since 1970) or a duration (10m)", flag, s)
}

func readWhen(s string, now time.Time) (time.Time, bool) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), true
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, true
		}
	}
	sec, frac, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	nano, ferr := strconv.ParseUint((frac + "000000000")[:9], 10, 32)
	return time.Unix(n, int64(nano)), err == nil && ferr == nil
}

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
	if d, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return timestamppb.New(t), nil
		}
	}
	sec, frac, _ := strings.Cut(s, ".")
	if n, err := strconv.ParseInt(sec, 10, 64); err == nil {
		nano, ferr := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
		if ferr == nil {
			return timestamppb.New(time.Unix(n, nano)), nil
		}
	}
	return nil, Usagef("invalid --%s %q: write a time (2026-01-02T15:04:05Z, or seconds since 1970) or a duration (10m)", flag, s)
}

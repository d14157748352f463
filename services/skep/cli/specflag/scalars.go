package specflag

import (
	"math/big"
	"strconv"
	"strings"
	"time"

	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

func parseBool(s string) (bool, error) {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, invalidf("%q is not true or false", s)
	}
	return v, nil
}

func parseUint(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, invalidf("%q is not a whole number of 0 or more", s)
	}
	return v, nil
}

func parseBudget(s string) (uint64, error) {
	v, err := parseUint(s)
	if err == nil && v > specs.MaxReplicas {
		return 0, invalidf("health-budget %d is above %d: use the most tasks to replace at once, or 0 for a quarter", v, specs.MaxReplicas)
	}
	return v, err
}

func parseInt(s string) (int64, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, invalidf("%q is not a whole number", s)
	}
	return v, nil
}

func parseBounded(lo, hi int64) func(string) (int64, error) {
	return func(s string) (int64, error) {
		v, err := parseInt(s)
		if err == nil && (v < lo || v > hi) {
			err = invalidf("%d is out of range: it must be between %d and %d", v, lo, hi)
		}
		return v, err
	}
}

// parseDuration refuses negative ones, in the words the flag's server-side check would use.
func parseDuration(flag string) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, invalidf("%q is not a duration: write it as 10s, 1m30s or 500ms", s)
		}
		if d < 0 {
			return 0, invalidf("%s cannot be negative", flag)
		}
		return d, nil
	}
}

// parseHealthDuration: 0 means "as the image says"; anything else must be a millisecond at least.
func parseHealthDuration(flag string) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := parseDuration(flag)(s)
		if err == nil && d > 0 && d < time.Millisecond {
			err = invalidf("%s cannot be less than 1ms", flag)
		}
		return d, err
	}
}

func parseRatio(flag string) func(string) (float64, error) {
	return func(s string) (float64, error) {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, invalidf("%q is not a number", s)
		}
		if v < 0 || v > 1 || v != v {
			return 0, invalidf("%s cannot be less than 0 or bigger than 1", flag)
		}
		return v, nil
	}
}

var sizeUnits = map[string]int64{
	"": 1, "b": 1,
	"k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10,
	"m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20,
	"g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30,
	"t": 1 << 40, "tb": 1 << 40, "tib": 1 << 40,
	"p": 1 << 50, "pb": 1 << 50, "pib": 1 << 50,
}

// ParseBytes reads a size such as 512m or 1.5GiB; units are powers of 1024.
func ParseBytes(s string) (int64, error) {
	bad := func() (int64, error) {
		return 0, invalidf("invalid size: '%s': write it as 512m or 2g", s)
	}
	i := len(s)
	for i > 0 && (s[i-1] < '0' || s[i-1] > '9') && s[i-1] != '.' {
		i--
	}
	num, unit := s[:i], strings.ToLower(strings.TrimSpace(s[i:]))
	mul, ok := sizeUnits[unit]
	if !ok || num == "" {
		return bad()
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || v < 0 || v*float64(mul) >= 1<<63 {
		return bad()
	}
	return int64(v * float64(mul)), nil
}

// parseSwap also takes -1, unlimited.
func parseSwap(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return ParseBytes(s)
}

// ParseCPUs reads a decimal number of CPUs into billionths.
func ParseCPUs(s string) (int64, error) {
	r, ok := new(big.Rat).SetString(s)
	if !ok || strings.Contains(s, "/") {
		return 0, invalidf("failed to parse %v as a rational number", s)
	}
	nano := r.Mul(r, big.NewRat(1e9, 1))
	if !nano.IsInt() {
		return 0, invalidf("value is too precise")
	}
	if nano.Sign() < 0 || !nano.Num().IsInt64() {
		return 0, invalidf("invalid cpu value %s: Must be at least 0.001", s)
	}
	return nano.Num().Int64(), nil
}

// choice makes a parser of a closed set of words.
func choice[T any](format string, words map[string]T) func(string) (T, error) {
	return func(s string) (T, error) {
		if v, ok := words[s]; ok {
			return v, nil
		}
		var zero T
		return zero, invalidf(format, s)
	}
}

var (
	parseRestart = choice(`invalid RestartCondition: "%s": it must be "none", "on-failure" or "any"`, map[string]skepv1.RestartCondition{
		"none": skepv1.RestartCondition_RESTART_CONDITION_NONE, "on-failure": skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE,
		"any": skepv1.RestartCondition_RESTART_CONDITION_ANY,
	})
	parseUpdateAction = choice(`unrecognized update failure action "%s": it must be "pause", "continue" or "rollback"`, map[string]skepv1.FailureAction{
		"pause": skepv1.FailureAction_FAILURE_ACTION_PAUSE, "continue": skepv1.FailureAction_FAILURE_ACTION_CONTINUE,
		"rollback": skepv1.FailureAction_FAILURE_ACTION_ROLLBACK,
	})
	parseRollbackAction = choice(`unrecognized rollback failure action "%s": it must be "pause" or "continue"`, map[string]skepv1.FailureAction{
		"pause": skepv1.FailureAction_FAILURE_ACTION_PAUSE, "continue": skepv1.FailureAction_FAILURE_ACTION_CONTINUE,
	})
	parseOrder = choice(`unrecognized update order "%s": it must be "start-first" or "stop-first"`, map[string]skepv1.UpdateOrder{
		"start-first": skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST, "stop-first": skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST,
	})
	parseEndpointMode = choice(`invalid endpoint mode "%s": it must be "vip" or "dnsrr"`, map[string]skepv1.EndpointSpec_Mode{
		"vip": skepv1.EndpointSpec_MODE_VIP, "dnsrr": skepv1.EndpointSpec_MODE_DNSRR,
	})
	parsePartition = choice(`invalid value "%s" for --on-partition: it must be "keep" or "stop"`, map[string]skepv1.PartitionPolicy{
		"keep": skepv1.PartitionPolicy_PARTITION_POLICY_KEEP, "stop": skepv1.PartitionPolicy_PARTITION_POLICY_STOP,
	})
	parseMode = choice(`unknown mode: %s, only replicated, global, replicated-job and global-job supported`, map[string]string{
		"replicated": "replicated", "global": "global", "replicated-job": "replicated-job", "global-job": "global-job",
	})
)

package specflag

import (
	"io"
	"net"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"unicode"

	specs "skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// ParseLabel checks one key=value label; the value is free and may be missing.
func ParseLabel(s string) (string, error) {
	k, _, _ := strings.Cut(strings.TrimLeftFunc(s, unicode.IsSpace), "=")
	if k == "" {
		return "", invalidf("invalid label '%s': empty name", s)
	}
	if strings.ContainsFunc(k, unicode.IsSpace) {
		return "", invalidf("label '%s' contains whitespaces", k)
	}
	return strings.TrimLeftFunc(s, unicode.IsSpace), nil
}

// Labels reads labels, key=value or key alone; of several with one key the last stays.
func Labels(list []string) (map[string]string, error) {
	pairs := make([]string, 0, len(list))
	for _, l := range list {
		p, err := ParseLabel(l)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
	return toMap(pairs), nil
}

// parsePair wants key=value.
func parsePair(what string) func(string) (string, error) {
	return func(s string) (string, error) {
		if k, _, ok := strings.Cut(s, "="); !ok || k == "" {
			return "", invalidf("invalid %s '%s': it must be key=value", what, s)
		}
		return s, nil
	}
}

func toMap(pairs []string) map[string]string {
	if len(pairs) == 0 {
		return nil
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return m
}

// environment expands bare KEYs from the caller's environment and keeps the last value of each key.
func environment(getenv func(string) (string, bool), files, vars []string) ([]string, error) {
	var all []string
	for _, f := range files {
		lines, err := readEnvFile(f)
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
	}
	all = append(all, vars...)
	at := map[string]int{}
	var out []string
	for _, e := range all {
		k, _, has := strings.Cut(e, "=")
		if !has {
			v, ok := getenv(k)
			if !ok {
				continue
			}
			if e = k + "=" + v; readable(e) != nil {
				return nil, readable(e)
			}
		}
		if i, ok := at[k]; ok {
			out[i] = e
			continue
		}
		at[k] = len(out)
		out = append(out, e)
	}
	return out, nil
}

func readEnvFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, invalidf("read --env-file: %v", err)
	}
	defer f.Close()
	return parseEnvFile(path, f)
}

// maxEnvFile is how large an --env-file may be, bytes: no spec holds as much.
const maxEnvFile = 1 << 20

// parseEnvFile reads KEY=value and KEY lines; empty ones and those that begin with # are passed over.
func parseEnvFile(path string, r io.Reader) ([]string, error) {
	all, err := io.ReadAll(io.LimitReader(r, maxEnvFile+1))
	switch {
	case err != nil:
		return nil, invalidf("read --env-file %s: %v", path, err)
	case len(all) > maxEnvFile:
		return nil, invalidf("read --env-file %s: it is larger than %d bytes, which no service's environment is (%d bytes with all else)", path, maxEnvFile, specs.MaxSize)
	}
	var out []string
	n := 0
	for line := range strings.Lines(string(all)) {
		n++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if n == 1 {
			line = strings.TrimPrefix(line, "\uFEFF")
		}
		if line = strings.TrimLeft(line, " \t"); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := readable(line); err != nil {
			return nil, invalidf("%s:%d: %v", path, n, err)
		}
		k, _, _ := strings.Cut(line, "=")
		if k == "" || strings.ContainsAny(k, " \t") {
			return nil, invalidf("%s:%d: variable '%s' contains whitespaces or has no name", path, n, k)
		}
		out = append(out, line)
	}
	return out, nil
}

func parseEnv(s string) (string, error) {
	if k, _, _ := strings.Cut(s, "="); k == "" {
		return "", invalidf("invalid environment variable: %s", s)
	}
	return s, nil
}

// ParseNetwork reads name or name=,alias=,ip=,ip6=,driver-opt=.
func ParseNetwork(s string) (*skepv1.NetworkAttachment, error) {
	if !strings.Contains(s, "=") {
		if s == "" {
			return nil, invalidf("network name must be provided")
		}
		return checkNetwork(&skepv1.NetworkAttachment{Target: s})
	}
	parts, err := fields(s)
	if err != nil {
		return nil, invalidf("invalid network %q: %v", s, err)
	}
	n := &skepv1.NetworkAttachment{}
	for _, f := range parts {
		k, v, ok := strings.Cut(f, "=")
		if !ok || k == "" {
			return nil, invalidf("invalid field '%s' must be a key=value pair", f)
		}
		switch strings.TrimSpace(strings.ToLower(k)) {
		case "name":
			n.Target = v
		case "alias":
			n.Aliases = append(n.Aliases, v)
		case "ip":
			n.Ipv4Address = v
		case "ip6":
			n.Ipv6Address = v
		case "driver-opt":
			ok, ov, has := strings.Cut(v, "=")
			if !has {
				return nil, invalidf("invalid key value pair format in driver options")
			}
			if n.DriverOpts == nil {
				n.DriverOpts = map[string]string{}
			}
			n.DriverOpts[ok] = ov
		default:
			return nil, invalidf("invalid field key %s: it must be name, alias, ip, ip6 or driver-opt", k)
		}
	}
	if n.Target == "" {
		return nil, invalidf("network name/id is not specified")
	}
	return checkNetwork(n)
}

func checkNetwork(n *skepv1.NetworkAttachment) (*skepv1.NetworkAttachment, error) {
	if n.Target == "ingress" {
		return nil, invalidf("Service cannot be explicitly attached to the ingress network")
	}
	return n, nil
}

// parseFile reads --secret and --config: name or source=,target=,uid=,gid=,mode=. A name may end in @ and a version, which
// it then keeps.
func parseFile(s string) (*skepv1.FileReference, error) {
	r := &skepv1.FileReference{Uid: "0", Gid: "0", Mode: 0o444}
	if !strings.Contains(s, "=") {
		if s == "" {
			return nil, invalidf("source is required")
		}
		s = "source=" + s
	}
	parts, err := fields(s)
	if err != nil {
		return nil, invalidf("invalid value %q: %v", s, err)
	}
	for _, f := range parts {
		k, v, ok := strings.Cut(f, "=")
		if !ok || k == "" {
			return nil, invalidf("invalid field '%s' must be a key=value pair", f)
		}
		switch strings.ToLower(k) {
		case "source", "src":
			r.Name = v
		case "target":
			r.Target = v
		case "uid":
			r.Uid = v
		case "gid":
			r.Gid = v
		case "mode":
			n, err := strconv.ParseUint(v, 0, 32)
			if err != nil {
				return nil, invalidf("invalid mode specified: %s: write it in octal, as 0444", v)
			}
			r.Mode = uint32(n)
		default:
			return nil, invalidf("invalid field in secret or config request: %s", k)
		}
	}
	if name, version, pinned := strings.Cut(r.Name, "@"); pinned {
		n, err := strconv.ParseUint(version, 10, 64)
		if err != nil || n == 0 {
			return nil, invalidf("invalid version %q of %s: write it as %s@3", version, name, name)
		}
		r.Name, r.Version, r.Pinned = name, n, true
	}
	if r.Name == "" {
		return nil, invalidf("source is required")
	}
	if r.Target == "" {
		r.Target = r.Name
	}
	return r, nil
}

// parseHost turns host:ip into the "IP host" form of the spec.
func parseHost(s string) (string, error) {
	host, ip, ok := strings.Cut(s, ":")
	if !ok || host == "" || strings.ContainsFunc(host, notInName) {
		return "", invalidf("bad format for add-host: %q: it must be host:ip", s)
	}
	ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
	if net.ParseIP(ip) == nil {
		return "", invalidf("invalid IP address in add-host: %q", ip)
	}
	return ip + " " + host, nil
}

// notInName: what would end a name in a file of hosts, or begin a comment there.
func notInName(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '#' }

func parseIP(s string) (string, error) {
	ip := net.ParseIP(strings.TrimSpace(s))
	if ip == nil {
		return "", invalidf("IP address is not correctly formatted: %s", s)
	}
	return ip.String(), nil
}

var domain = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*\.?$`)

func parseDomain(s string) (string, error) {
	s = strings.TrimSpace(s)
	if s == "." {
		return s, nil
	}
	if !domain.MatchString(s) || len(s) > 255 || !strings.ContainsFunc(s, unicode.IsLetter) {
		return "", invalidf("%s is not a valid domain", s)
	}
	return s, nil
}

func parseUlimit(s string) (*skepv1.Ulimit, error) {
	name, val, ok := strings.Cut(s, "=")
	if !ok {
		return nil, invalidf("invalid ulimit argument: %s: it must be type=soft[:hard]", s)
	}
	softs, hards, two := strings.Cut(val, ":")
	soft, err := strconv.ParseInt(softs, 10, 64)
	if err != nil {
		return nil, invalidf("invalid ulimit argument: %s: %q is not a number", s, softs)
	}
	hard := soft
	if two {
		if hard, err = strconv.ParseInt(hards, 10, 64); err != nil {
			return nil, invalidf("invalid ulimit argument: %s: %q is not a number", s, hards)
		}
	}
	u := &skepv1.Ulimit{Name: name, Soft: soft, Hard: hard}
	if err := specs.CheckUlimit(u); err != nil {
		return nil, invalidf("%v", err)
	}
	return u, nil
}

func parseGeneric(s string) (*skepv1.GenericResource, error) {
	name, val, ok := strings.Cut(s, "=")
	if !ok || name == "" || val == "" {
		return nil, invalidf("incorrect generic-resource %s: it must be name=number", s)
	}
	n, err := strconv.ParseInt(val, 10, 64)
	if err != nil {
		return nil, invalidf("Named Generic Resources is not supported for service create or update")
	}
	if n < 0 {
		return nil, invalidf("invalid generic-resource %s: the number cannot be negative", s)
	}
	return &skepv1.GenericResource{Kind: name, Value: n}, nil
}

func parsePreference(s string) (*skepv1.PlacementPreference, error) {
	strategy, arg, ok := strings.Cut(s, "=")
	if !ok || arg == "" {
		return nil, invalidf(`placement preference must be of the format "<strategy>=<arg>"`)
	}
	if strategy != "spread" {
		return nil, invalidf("unsupported placement preference %s (only spread is supported)", strategy)
	}
	return &skepv1.PlacementPreference{Spread: arg}, nil
}

func parseCredential(s string) (string, error) {
	for _, p := range []string{"config://", "file://", "registry://"} {
		if strings.HasPrefix(s, p) {
			return s, nil
		}
	}
	return "", invalidf(`invalid credential spec: value must be prefixed with "config://", "file://", or "registry://"`)
}

const (
	capAll   = "ALL"
	capReset = "RESET"
)

func capSet(in []string) map[string]bool {
	out := map[string]bool{}
	for _, c := range in {
		c = strings.ToUpper(strings.TrimSpace(c))
		if c == "" {
			continue
		}
		if c != capAll && c != capReset && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		out[c] = true
	}
	return out
}

func sorted(set map[string]bool) []string {
	var out []string
	for k := range set {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// capabilities settles what a create asks for: ALL swallows the rest and adding wins over dropping.
func capabilities(add, drop []string) (a, d []string) {
	as, ds := capSet(add), capSet(drop)
	delete(as, capReset)
	delete(ds, capReset)
	if as[capAll] {
		as = map[string]bool{capAll: true}
	}
	if ds[capAll] {
		ds = map[string]bool{capAll: true}
	}
	for c := range as {
		if c != capAll {
			delete(ds, c)
		}
	}
	return sorted(as), sorted(ds)
}

package specflag

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// Absent are warnings, one for each value of a --…-rm flag that named nothing the service has. Valid after Apply.
// Removing what is not there is no error, as scripts repeat themselves; networks, ports and generic resources, which
// others depend on, are refused by Apply.
func (f *Flags) Absent() []string { return f.absent }

// noteAbsent looks, before anything is applied, at what the --…-rm flags name.
func (f *Flags) noteAbsent(s *skepv1.ServiceSpec) {
	c := s.GetTask().GetContainer()
	note := func(flag string, rm *list[string], have []string, has func(string) bool) {
		for _, r := range rm.vals {
			if !has(r) {
				f.absent = append(f.absent, fmt.Sprintf("--%s-rm %s: the service has no such %s%s; nothing was removed.", flag, r, words[flag], There(have)))
			}
		}
	}
	in := func(flag string, rm *list[string], have []string) {
		note(flag, rm, have, func(r string) bool { return slices.Contains(have, r) })
	}
	key := func(flag string, rm *list[string], have map[string]string) {
		in(flag, rm, slices.Sorted(maps.Keys(have)))
	}
	env := names(c.GetEnv(), func(e string) string { k, _, _ := strings.Cut(e, "="); return k }) // a value may be a password
	note("env", f.env.rm, env, func(r string) bool {
		name, _, _ := strings.Cut(r, "=")
		return slices.Contains(env, name)
	})
	key("label", f.labels.rm, s.GetLabels())
	key("container-label", f.containerLabels.rm, c.GetLabels())
	key("sysctl", f.sysctls.rm, c.GetSysctls())
	in("group", f.groups.rm, c.GetGroups())
	in("dns", f.dns.rm, c.GetDns().GetNameservers())
	in("dns-option", f.dnsOptions.rm, c.GetDns().GetOptions())
	in("dns-search", f.dnsSearch.rm, c.GetDns().GetSearch())
	in("ulimit", f.ulimits.rm, names(c.GetUlimits(), (*skepv1.Ulimit).GetName))
	note("host", f.hosts.rm, names(c.GetHosts(), hostWord), func(r string) bool {
		host, ip, hasIP, err := parseHostRm(r)
		return err != nil || slices.ContainsFunc(c.GetHosts(), func(h string) bool { // Apply tells the error
			w := strings.Fields(h)
			return len(w) > 1 && (!hasIP || sameAddress(w[0], ip)) && slices.Contains(w[1:], host)
		})
	})
	note("mount", f.mounts.rm, names(c.GetMounts(), (*skepv1.Mount).GetTarget), func(r string) bool {
		return slices.ContainsFunc(c.GetMounts(), func(m *skepv1.Mount) bool { return namesMount([]string{r}, m) })
	})
	in("secret", f.secrets.rm, names(c.GetSecrets(), (*skepv1.FileReference).GetName))
	in("config", f.configs.rm, names(c.GetConfigs(), (*skepv1.FileReference).GetName))
	p := s.GetTask().GetPlacement()
	note("constraint", f.constraints.rm, p.GetConstraints(), func(r string) bool {
		return slices.ContainsFunc(p.GetConstraints(), func(c string) bool { return squeeze(c) == squeeze(r) })
	})
	spread := names(p.GetPreferences(), func(p *skepv1.PlacementPreference) string { return "spread=" + p.GetSpread() })
	note("placement-pref", f.prefs.rm, spread, func(r string) bool {
		return slices.Contains(spread, "spread="+strings.TrimPrefix(r, "spread="))
	})
}

func names[T any](have []T, name func(T) string) []string {
	var out []string
	for _, h := range have {
		out = append(out, name(h))
	}
	return out
}

// hostWord is an entry of a hosts file, "ADDRESS NAME…", as --host-rm takes it.
func hostWord(entry string) string {
	addr, host, _ := strings.Cut(entry, " ")
	return strings.TrimSpace(host) + ":" + addr
}

// mostThere is how many of the things that are there are named.
const mostThere = 10

// There is the part of a warning that says what there is, where what was to be removed is not: " (it has a, b)".
func There(have []string) string {
	more := ""
	if n := len(have) - mostThere; n > 0 {
		have, more = have[:mostThere], fmt.Sprintf(" and %d more", n)
	}
	if len(have) == 0 {
		return " (it has none)"
	}
	return " (it has " + strings.Join(have, ", ") + more + ")"
}

// words are what the flags' values are called.
var words = map[string]string{
	"env": "variable", "label": "label", "container-label": "container label", "sysctl": "kernel parameter", "group": "group",
	"dns": "name server", "dns-option": "resolver option", "dns-search": "search domain", "ulimit": "limit", "host": "entry",
	"mount": "mount", "secret": "secret", "config": "config", "constraint": "constraint", "placement-pref": "preference",
}

// squeeze is a constraint without its blanks: they mean nothing.
func squeeze(s string) string { return strings.Join(strings.Fields(s), "") }

// namesMount tells whether one of the paths is the mount's target.
func namesMount(paths []string, m *skepv1.Mount) bool {
	return slices.ContainsFunc(paths, func(p string) bool { return p != "" && path.Clean(p) == path.Clean(m.Target) })
}

// parseHostRm reads host or host:ip.
func parseHostRm(s string) (host, ip string, hasIP bool, err error) {
	host, ip, hasIP = strings.Cut(s, ":")
	if host == "" {
		return "", "", false, invalidf("bad format for host-rm: %q: it must be host or host:ip", s)
	}
	return host, strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]"), hasIP, nil
}

// sameAddress compares two addresses, however they are written.
func sameAddress(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	return a == b || errX == nil && errY == nil && x == y
}

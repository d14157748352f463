package specflag

import (
	"fmt"
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
	note := func(flag string, rm *list[string], has func(string) bool) {
		for _, r := range rm.vals {
			if !has(r) {
				f.absent = append(f.absent, fmt.Sprintf("--%s-rm %s: the service has no such %s; nothing was removed.", flag, r, words[flag]))
			}
		}
	}
	in := func(have []string) func(string) bool {
		return func(r string) bool { return slices.Contains(have, r) }
	}
	key := func(m map[string]string) func(string) bool {
		return func(r string) bool { _, ok := m[r]; return ok }
	}
	note("env", f.env.rm, func(r string) bool {
		name, _, _ := strings.Cut(r, "=")
		return slices.ContainsFunc(c.GetEnv(), func(e string) bool { k, _, _ := strings.Cut(e, "="); return k == name })
	})
	note("label", f.labels.rm, key(s.GetLabels()))
	note("container-label", f.containerLabels.rm, key(c.GetLabels()))
	note("sysctl", f.sysctls.rm, key(c.GetSysctls()))
	note("group", f.groups.rm, in(c.GetGroups()))
	note("dns", f.dns.rm, in(c.GetDns().GetNameservers()))
	note("dns-option", f.dnsOptions.rm, in(c.GetDns().GetOptions()))
	note("dns-search", f.dnsSearch.rm, in(c.GetDns().GetSearch()))
	note("ulimit", f.ulimits.rm, func(r string) bool {
		return slices.ContainsFunc(c.GetUlimits(), func(u *skepv1.Ulimit) bool { return u.Name == r })
	})
	note("host", f.hosts.rm, func(r string) bool {
		host, ip, hasIP, err := parseHostRm(r)
		return err != nil || slices.ContainsFunc(c.GetHosts(), func(h string) bool { // Apply tells the error
			w := strings.Fields(h)
			return len(w) > 1 && (!hasIP || sameAddress(w[0], ip)) && slices.Contains(w[1:], host)
		})
	})
	note("mount", f.mounts.rm, func(r string) bool {
		return slices.ContainsFunc(c.GetMounts(), func(m *skepv1.Mount) bool { return namesMount([]string{r}, m) })
	})
	file := func(have []*skepv1.FileReference) func(string) bool {
		return func(r string) bool {
			return slices.ContainsFunc(have, func(f *skepv1.FileReference) bool { return f.Name == r })
		}
	}
	note("secret", f.secrets.rm, file(c.GetSecrets()))
	note("config", f.configs.rm, file(c.GetConfigs()))
	p := s.GetTask().GetPlacement()
	note("constraint", f.constraints.rm, func(r string) bool {
		return slices.ContainsFunc(p.GetConstraints(), func(c string) bool { return squeeze(c) == squeeze(r) })
	})
	note("placement-pref", f.prefs.rm, func(r string) bool {
		return slices.ContainsFunc(p.GetPreferences(), func(c *skepv1.PlacementPreference) bool { return c.Spread == strings.TrimPrefix(r, "spread=") })
	})
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

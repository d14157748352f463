package ingress

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sysctl is one value below /proc/sys.
type sysctl struct {
	path, value string
	optional    bool // the kernel may lack it
}

// wantedSysctls. Reverse path filters work by the stricter of `all` and the link, so where the host has strict ones
// the fabric's is made loose, which is enough with a default route; else it is off.
func (p *Plane) wantedSysctls() []sysctl {
	conf := func(link, key string) string { return "net/ipv4/conf/" + link + "/" + key }
	filter := "0"
	if v, err := readSysctl(conf("all", "rp_filter")); err == nil && v != "0" {
		filter = "2"
	}
	out := []sysctl{
		{"net/ipv4/ip_forward", "1", false},
		{conf(Link, "forwarding"), "1", false},
		{conf(p.cfg.Bridge, "forwarding"), "1", false},
		{conf(Link, "rp_filter"), filter, false},
		// 127.0.0.1:port leaves by these links, and its replies come in by them.
		{conf(Link, "route_localnet"), "1", false},
		{conf(p.cfg.Bridge, "route_localnet"), "1", false},
	}
	if srcValidMark(p.cfg.Bridge) && rpFilter(p.cfg.Bridge) == "1" {
		// The marks of replies lead to the fabric: a strict filter would drop them.
		out = append(out, sysctl{conf(p.cfg.Bridge, "rp_filter"), "2", false})
	}
	if p.ipv6 {
		out = append(out, p.wantedSysctls6()...)
	}
	return out
}

func (p *Plane) sysctlSteps() (out []step) {
	for _, s := range p.wantedSysctls() {
		v, err := readSysctl(s.path)
		if err == nil && v == s.value {
			continue
		}
		name := strings.ReplaceAll(s.path, "/", ".")
		if err != nil {
			v = "unreadable"
		}
		out = append(out, step{fmt.Sprintf("sysctl %s is %s, not %s", name, v, s.value), func() error { return p.setSysctl(s) }})
	}
	return out
}

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", path))
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(s sysctl) error {
	err := os.WriteFile(filepath.Join("/proc/sys", s.path), []byte(s.value), 0o644)
	if s.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", strings.ReplaceAll(s.path, "/", "."), s.value, err)
	}
	return nil
}

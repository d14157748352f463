package render

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// ShortLen is how much of an id a table shows.
const ShortLen = 12

// ShortID cuts an id to what a table shows.
func ShortID(id string) string {
	if len(id) > ShortLen {
		return id[:ShortLen]
	}
	return id
}

// Age says how long d is, the way Docker does.
func Age(d time.Duration) string {
	s := int(d.Seconds())
	switch {
	case s < 1:
		return "Less than a second"
	case s == 1:
		return "1 second"
	case s < 60:
		return fmt.Sprintf("%d seconds", s)
	}
	switch m := int(d.Minutes()); {
	case m == 1:
		return "About a minute"
	case m < 60:
		return fmt.Sprintf("%d minutes", m)
	}
	switch h := int(d.Hours() + 0.5); {
	case h == 1:
		return "About an hour"
	case h < 48:
		return fmt.Sprintf("%d hours", h)
	case h < 24*7*2:
		return fmt.Sprintf("%d days", h/24)
	case h < 24*30*2:
		return fmt.Sprintf("%d weeks", h/24/7)
	case h < 24*365*2:
		return fmt.Sprintf("%d months", h/24/30)
	}
	return fmt.Sprintf("%d years", int(d.Hours())/24/365)
}

// Ago is Age in the middle of a sentence.
func Ago(t, now time.Time) string { return strings.ToLower(Age(now.Sub(t))) + " ago" }

// NaturalLess orders strings with the numbers in them by value: web.2 before web.10.
func NaturalLess(a, b string) bool {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da > 0 && db > 0 {
			na, nb := strings.TrimLeft(a[:da], "0"), strings.TrimLeft(b[:db], "0")
			if len(na) != len(nb) {
				return len(na) < len(nb)
			}
			if na != nb {
				return na < nb
			}
			a, b = a[da:], b[db:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// State is a task state as people read it: Running.
func State(s skepv1.TaskState) string { return title(StateWord(s)) }

// StateWord is a task state in lower case, as filters and events use it.
func StateWord(s skepv1.TaskState) string {
	return spec.Word(s)
}

// Image drops the digest of a reference that has a tag, or leaves the name alone with it: docker.io/library/ goes too.
func Image(ref string) string {
	name, digest, has := strings.Cut(ref, "@")
	name = strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/")
	if has && !strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":") {
		return name + "@" + digest
	}
	return name
}

// Ports lists the ingress ports of a service, neighbours merged: *:8080->80/tcp, *:9000-9002->9000-9002/tcp.
func Ports(ports []*skepv1.PortConfig) string {
	var ps []*skepv1.PortConfig
	for _, p := range ports {
		if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS {
			ps = append(ps, p)
		}
	}
	sort.SliceStable(ps, func(i, j int) bool {
		a, b := ps[i], ps[j]
		if a.Protocol != b.Protocol {
			return a.Protocol < b.Protocol
		}
		if a.PublishedPort != b.PublishedPort {
			return a.PublishedPort < b.PublishedPort
		}
		return a.TargetPort < b.TargetPort
	})
	var out []string
	for i := 0; i < len(ps); {
		j := i + 1
		for j < len(ps) && ps[j].Protocol == ps[i].Protocol && ps[j].PublishedPort == ps[j-1].PublishedPort+1 && ps[j].TargetPort == ps[j-1].TargetPort+1 {
			j++
		}
		pub, tgt := fmt.Sprint(ps[i].PublishedPort), fmt.Sprint(ps[i].TargetPort)
		if j-i > 1 {
			pub += fmt.Sprintf("-%d", ps[j-1].PublishedPort)
			tgt += fmt.Sprintf("-%d", ps[j-1].TargetPort)
		}
		out = append(out, fmt.Sprintf("*:%s->%s/%s", pub, tgt, protocol(ps[i])))
		i = j
	}
	return strings.Join(out, ", ")
}

// HostPorts lists the ports a task holds on its node.
func HostPorts(ports []*skepv1.PortConfig) string {
	var out []string
	for _, p := range ports {
		at := "*"
		switch {
		case strings.Contains(p.HostIp, ":"):
			at = "[" + p.HostIp + "]"
		case p.HostIp != "":
			at = p.HostIp
		}
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", at, p.PublishedPort, p.TargetPort, protocol(p)))
	}
	return strings.Join(out, ",")
}

func protocol(p *skepv1.PortConfig) string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}

// Bytes is a size in the unit that suits it: 1.5GiB.
func Bytes(n int64) string {
	v, i := float64(n), 0
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for v >= 1024 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.4g%s", v, units[i])
}

package specflag

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// ParsePorts reads one --publish value, in its short form [published:]target[/protocol] (either side may be a
// range) or in its long form published=,target=,protocol=,mode=,host_ip=.
func ParsePorts(s string) ([]*skepv1.PortConfig, error) {
	if strings.Contains(s, "=") {
		p, err := parseLongPort(s)
		if err != nil {
			return nil, err
		}
		return []*skepv1.PortConfig{p}, nil
	}
	return parseShortPort(s)
}

func parseLongPort(s string) (*skepv1.PortConfig, error) {
	parts, err := fields(s)
	if err != nil {
		return nil, invalidf("invalid port %q: %v", s, err)
	}
	p := &skepv1.PortConfig{Protocol: "tcp"}
	for _, f := range parts {
		key, val, ok := strings.Cut(f, "=")
		if !ok || key == "" {
			return nil, invalidf("invalid field: %s", f)
		}
		switch strings.ToLower(key) {
		case "protocol":
			if p.Protocol, err = protocol(val); err != nil {
				return nil, err
			}
		case "mode":
			switch strings.ToLower(val) {
			case "ingress":
				p.PublishMode = skepv1.PublishMode_PUBLISH_MODE_INGRESS
			case "host":
				p.PublishMode = skepv1.PublishMode_PUBLISH_MODE_HOST
			default:
				return nil, invalidf("invalid publish mode value (%s): must be either 'ingress' or 'host'", val)
			}
		case "target":
			if p.TargetPort, err = portNumber("target", val); err != nil {
				return nil, err
			}
		case "published":
			if p.PublishedPort, err = portNumber("published", val); err != nil {
				return nil, err
			}
		case "host_ip":
			if p.HostIp, err = hostIP(val); err != nil {
				return nil, err
			}
		case "name":
			p.Name = val
		default:
			return nil, invalidf("invalid field key: %s", key)
		}
	}
	if p.TargetPort == 0 {
		return nil, invalidf("missing mandatory field 'target'")
	}
	if p.HostIp != "" && p.PublishMode != skepv1.PublishMode_PUBLISH_MODE_HOST {
		return nil, invalidf("host_ip=%s needs mode=host: the routing mesh takes a port at every address of every node", p.HostIp)
	}
	return p, nil
}

func parseShortPort(s string) ([]*skepv1.PortConfig, error) {
	rest, proto, has := strings.Cut(s, "/")
	if !has {
		proto = "tcp"
	}
	proto, err := protocol(proto)
	if err != nil {
		return nil, err
	}
	published, target := "", rest
	if i := strings.LastIndex(rest, ":"); i >= 0 {
		published, target = rest[:i], rest[i+1:]
		if j := strings.LastIndex(published, ":"); j >= 0 && !strings.HasSuffix(published, "]") {
			return nil, atOneAddress(strings.Trim(published[:j], "[]"), published[j+1:], target)
		}
		if at := strings.Trim(published, "[]"); net.ParseIP(at) != nil && strings.ContainsAny(at, ".:") {
			return nil, atOneAddress(at, "", target)
		}
	}
	if target == "" {
		return nil, invalidf("no port specified: %s<empty>", strings.TrimSuffix(rest, target))
	}
	tlo, thi, err := portRange("containerPort", target)
	if err != nil {
		return nil, err
	}
	var plo, phi uint32
	if published != "" && published != "0" { // 0 is Docker's word for any free port
		if plo, phi, err = portRange("hostPort", published); err != nil {
			return nil, err
		}
	}
	var out []*skepv1.PortConfig
	add := func(t, p uint32) {
		out = append(out, &skepv1.PortConfig{Protocol: proto, TargetPort: t, PublishedPort: p})
	}
	switch {
	case plo == 0:
		for t := tlo; t <= thi; t++ {
			add(t, 0)
		}
	case tlo == thi:
		for p := plo; p <= phi; p++ {
			add(tlo, p)
		}
	case phi-plo != thi-tlo:
		return nil, invalidf("invalid ranges specified for container and host Ports: %s and %s", target, published)
	default:
		for t := tlo; t <= thi; t++ {
			add(t, plo+(t-tlo))
		}
	}
	return out, nil
}

// atOneAddress says how a port is published at one address: this form is the routing mesh's.
func atOneAddress(at, published, target string) error {
	if published != "" {
		published = ",published=" + published
	}
	return invalidf("a port is published at address %s with mode=host alone, as the routing mesh takes it at every address of every node: use mode=host,host_ip=%s%s,target=%s, or leave the address out", at, at, published, target)
}

func hostIP(s string) (string, error) {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil || a.Zone() != "" {
		return "", invalidf("invalid host_ip %q: it must be an address of the node, such as 127.0.0.1", s)
	}
	if a.IsUnspecified() {
		return "", nil
	}
	return a.Unmap().String(), nil
}

func protocol(s string) (string, error) {
	switch p := strings.ToLower(s); p {
	case "tcp", "udp", "sctp":
		return p, nil
	}
	return "", invalidf("invalid protocol value '%s': it must be tcp, udp or sctp", s)
}

func portNumber(what, s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, invalidf("invalid %s port (%s): value must be an integer from 0 to 65535", what, s)
	}
	return uint32(n), nil
}

func portRange(what, s string) (lo, hi uint32, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	l, err1 := strconv.ParseUint(a, 10, 16)
	h, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || l == 0 {
		return 0, 0, invalidf("invalid %s: %s: ports are numbers from 1 to 65535", what, s)
	}
	if h < l {
		return 0, 0, invalidf("invalid %s: %s: the range ends before it begins", what, s)
	}
	return uint32(l), uint32(h), nil
}

func orTCP(s string) string {
	if s == "" {
		return "tcp"
	}
	return s
}

func portKey(p *skepv1.PortConfig) string {
	return fmt.Sprintf("%s:%d:%d/%s/%d", p.HostIp, p.PublishedPort, p.TargetPort, orTCP(p.Protocol), p.PublishMode)
}

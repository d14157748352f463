package specflag

import (
	"slices"
	"strconv"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

// unpublish takes out the ports that --publish-rm values name. A value that names a published port takes that one; a
// target port alone takes all that lead to it. A value that names none is refused, with those there are.
func unpublish(have []*skepv1.PortConfig, rm []string, assigned []*skepv1.PortConfig) ([]*skepv1.PortConfig, error) {
	gone := map[*skepv1.PortConfig]bool{}
	for _, r := range rm {
		names, err := ParsePorts(r)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			found := false
			for _, p := range have {
				if namesPort(n, p, assigned) {
					gone[p], found = true, true
				}
			}
			if !found {
				return nil, notPublished(r, n, have, assigned)
			}
		}
	}
	return slices.DeleteFunc(have, func(p *skepv1.PortConfig) bool { return gone[p] }), nil
}

// namesPort tells whether a --publish-rm value names port p: by target, protocol and mode (ingress where it says none), and
// by the published port and the node's address where it gives them.
func namesPort(rm, p *skepv1.PortConfig, assigned []*skepv1.PortConfig) bool {
	return rm.TargetPort == p.TargetPort && rm.Protocol == orTCP(p.Protocol) && rm.PublishMode == p.PublishMode &&
		(rm.HostIp == "" || rm.HostIp == p.HostIp) && (rm.PublishedPort == 0 || rm.PublishedPort == number(p, assigned))
}

// number is a port's published number: of a spec that names none the one the cluster chose.
func number(p *skepv1.PortConfig, assigned []*skepv1.PortConfig) uint32 {
	if p.PublishedPort != 0 {
		return p.PublishedPort
	}
	for _, a := range assigned {
		if a.TargetPort == p.TargetPort && orTCP(a.Protocol) == orTCP(p.Protocol) && a.PublishMode == p.PublishMode && a.HostIp == p.HostIp {
			return a.PublishedPort
		}
	}
	return 0
}

func notPublished(r string, rm *skepv1.PortConfig, have, assigned []*skepv1.PortConfig) error {
	if len(have) == 0 {
		return invalidf("the service does not publish %s: it publishes no port", r)
	}
	var words []string
	for _, p := range have {
		word := publishWord(p, assigned)
		if rm.PublishedPort == 0 && rm.TargetPort == number(p, assigned) {
			return invalidf("the service publishes no port with target %d: to remove the one published as %d write --publish-rm %s", rm.TargetPort, rm.TargetPort, word)
		}
		words = append(words, word)
	}
	return invalidf("the service does not publish %s: it publishes %s", r, strings.Join(words, ", "))
}

// publishWord is a port as --publish-rm takes it.
func publishWord(p *skepv1.PortConfig, assigned []*skepv1.PortConfig) string {
	n := number(p, assigned)
	if p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST {
		word := "mode=host,target=" + strconv.Itoa(int(p.TargetPort))
		if n != 0 {
			word += ",published=" + strconv.Itoa(int(n))
		}
		if p.HostIp != "" {
			word += ",host_ip=" + p.HostIp
		}
		if orTCP(p.Protocol) != "tcp" {
			word += ",protocol=" + p.Protocol
		}
		return word
	}
	word := strconv.Itoa(int(p.TargetPort)) + "/" + orTCP(p.Protocol)
	if n != 0 {
		word = strconv.Itoa(int(n)) + ":" + word
	}
	return word
}

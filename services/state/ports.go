package state

import (
	"math/rand/v2"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// Ports that nobody named come from here, as in Swarm.
const (
	firstDynamic = 30000
	lastDynamic  = 32767
	// maxPorts leaves room in one atomic batch (1,000 writes) for replacing all of them.
	maxPorts = 450
)

// hostPrefix begins the value of a port's index key when services publish it on their hosts: any number of services
// may, the scheduler keeps them apart. Otherwise the value is the one service that has it on the mesh.
const hostPrefix = "host "

// holder is who has a port.
type holder struct {
	ingress string
	hosts   []string
}

func parseHolder(v string) holder {
	if rest, ok := strings.CutPrefix(v, hostPrefix); ok {
		return holder{hosts: strings.Fields(rest)}
	}
	return holder{ingress: v}
}

func (h holder) String() string {
	if len(h.hosts) > 0 {
		slices.Sort(h.hosts)
		return hostPrefix + strings.Join(h.hosts, " ")
	}
	return h.ingress
}

func (h holder) without(id string) holder {
	if h.ingress == id {
		h.ingress = ""
	}
	h.hosts = slices.DeleteFunc(slices.Clone(h.hosts), func(x string) bool { return x == id })
	return h
}

// allocatePorts fills in the published ports of a service: those it asks for must be free, those it leaves open
// keep what they had or get a free one.
func (s *Service) allocatePorts(id string, spec *skepv1.ServiceSpec, had *skepv1.Endpoint) ([]*skepv1.PortConfig, error) {
	asked := spec.GetEndpoint().GetPorts()
	if len(asked) > maxPorts {
		return nil, fault.Invalid("EndpointSpec: %d published ports: at most %d for one service", len(asked), maxPorts)
	}
	out := make([]*skepv1.PortConfig, len(asked))
	taken := map[string]bool{}
	own := s.ownPorts()
	for i, p := range asked {
		out[i] = proto.CloneOf(p)
		if p.PublishedPort == 0 {
			continue
		}
		key := keys.PortKey(p.Protocol, p.PublishedPort)
		taken[key] = true
		if err := own.refuse(p); err != nil {
			return nil, err
		}
		if err := s.portFree(id, p, key); err != nil {
			return nil, err
		}
	}
	for _, p := range out {
		if p.PublishedPort != 0 || p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST {
			continue
		}
		if p.PublishedPort = keptPort(p, had, taken); p.PublishedPort == 0 {
			var err error
			if p.PublishedPort, err = s.dynamicPort(p.Protocol, taken, own); err != nil {
				return nil, err
			}
		}
		taken[keys.PortKey(p.Protocol, p.PublishedPort)] = true
	}
	return out, nil
}

// portFree says who has the port, if it is somebody else.
func (s *Service) portFree(id string, p *skepv1.PortConfig, key string) error {
	k, ok := s.ix.Key(key)
	if !ok {
		return nil
	}
	h := parseHolder(k.Value).without(id)
	switch {
	case h.ingress != "":
		return s.portTaken(p.PublishedPort, h.ingress, "as an ingress port")
	case len(h.hosts) > 0 && p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_INGRESS:
		return s.portTaken(p.PublishedPort, h.hosts[0], "as a host-published port")
	}
	return nil
}

func (s *Service) portTaken(port uint32, id, how string) error {
	return fault.Conflict("port '%d' is already in use by service '%s' (%s) %s", port, s.ix.ServiceName(id), id, how)
}

// keptPort is the port that was allocated for the same target before.
func keptPort(p *skepv1.PortConfig, had *skepv1.Endpoint, taken map[string]bool) uint32 {
	for _, o := range had.GetPorts() {
		if o.TargetPort == p.TargetPort && o.Protocol == p.Protocol && o.PublishMode == p.PublishMode &&
			o.PublishedPort != 0 && !taken[keys.PortKey(o.Protocol, o.PublishedPort)] {
			return o.PublishedPort
		}
	}
	return 0
}

func (s *Service) dynamicPort(protocol string, taken map[string]bool, own ownPorts) (uint32, error) {
	const span = lastDynamic - firstDynamic + 1
	// From a random one on: several instances that allocate at once rarely meet.
	start := rand.IntN(span)
	for i := range span {
		port := uint32(firstDynamic + (start+i)%span)
		key := keys.PortKey(protocol, port)
		if _, used := s.ix.Key(key); !used && !taken[key] && !own.has(protocol, port) {
			return port, nil
		}
	}
	return 0, fault.Exhausted("all dynamic ports %d-%d/%s are in use: publish a port by number", firstDynamic, lastDynamic, protocol)
}

// portOps adds to a batch what moves a service from its old published ports to the new ones.
func (s *Service) portOps(b *kv.Batch, id string, old, new []*skepv1.PortConfig) error {
	mode := map[string]skepv1.PublishMode{}
	var touched []string
	for _, p := range slices.Concat(old, new) {
		if p.PublishedPort != 0 && !slices.Contains(touched, keys.PortKey(p.Protocol, p.PublishedPort)) {
			touched = append(touched, keys.PortKey(p.Protocol, p.PublishedPort))
		}
	}
	for _, p := range new {
		if p.PublishedPort != 0 {
			mode[keys.PortKey(p.Protocol, p.PublishedPort)] = p.PublishMode
		}
	}
	for _, key := range touched {
		k, exists := s.ix.Key(key)
		h := parseHolder(k.Value).without(id)
		m, wanted := mode[key]
		switch {
		case !wanted:
		case h.ingress != "":
			return kv.ErrConflict // taken since portFree looked: look again
		case m == skepv1.PublishMode_PUBLISH_MODE_HOST:
			h.hosts = append(h.hosts, id)
		case len(h.hosts) > 0:
			return kv.ErrConflict
		default:
			h.ingress = id
		}
		switch v := h.String(); {
		case v == k.Value:
		case v == "":
			b.Delete(key, k.Revision)
		case exists:
			b.Update(key, []byte(v), k.Revision)
		default:
			b.Create(key, []byte(v))
		}
	}
	return nil
}

package compose

import (
	"fmt"
	"math/big"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/compose-spec/compose-go/v2/types"

	skepv1 "skep.dev/proto/skep/v1"
)

// resources reads deploy.resources, and the attributes of a service that say the same.
func (s *service) resources() {
	r, out := s.deploy().Resources, s.out.Task.Resources
	out.Limits = s.resource("limits", r.Limits)
	out.Reservations = s.resource("reservations", r.Reservations)
	in := s.in
	if in.CPUS != 0 {
		same(s, "cpus", &limits(out).NanoCpus, s.cpus(s.at("cpus"), s.raw["cpus"]), "limits.cpus")
	}
	if in.MemLimit != 0 {
		same(s, "mem_limit", &limits(out).MemoryBytes, int64(in.MemLimit), "limits.memory")
	}
	if in.PidsLimit != 0 {
		same(s, "pids_limit", &limits(out).Pids, max(in.PidsLimit, 0), "limits.pids")
	}
	if in.MemReservation != 0 {
		if out.Reservations == nil {
			out.Reservations = &skepv1.Resources{}
		}
		same(s, "mem_reservation", &out.Reservations.MemoryBytes, int64(in.MemReservation), "reservations.memory")
	}
	switch memory := out.Limits.GetMemoryBytes(); {
	case in.MemSwapLimit == 0:
	case in.MemSwapLimit == -1:
		out.SwapBytes = proto.Int64(-1)
	case int64(in.MemSwapLimit) < memory:
		s.wrongAt(s.at("memswap_limit"), "it is memory and swap together, and below the limit of memory")
	default:
		out.SwapBytes = proto.Int64(int64(in.MemSwapLimit) - memory)
	}
	if s.raw["mem_swappiness"] != nil {
		out.MemorySwappiness = proto.Int64(int64(in.MemSwappiness))
	}
}

func limits(r *skepv1.ResourceRequirements) *skepv1.Resources {
	if r.Limits == nil {
		r.Limits = &skepv1.Resources{}
	}
	return r.Limits
}

// same sets what the short attribute says, unless the long one says something else.
func same(s *service, short string, to *int64, v int64, long string) {
	if *to != 0 && *to != v {
		s.wrongAt(s.at(short), "deploy.resources.%s says something else: remove one of them", long)
		return
	}
	*to = v
}

func (s *service) resource(key string, r *types.Resource) *skepv1.Resources {
	if r == nil {
		return nil
	}
	path := s.at("deploy", "resources", key)
	out := &skepv1.Resources{MemoryBytes: int64(r.MemoryBytes), Pids: r.Pids}
	out.NanoCpus = s.cpus(append(path, "cpus"), rawAt(s.raw, "deploy", "resources", key, "cpus"))
	for i, g := range r.GenericResources {
		if g.DiscreteResourceSpec == nil {
			s.wrongAt(append(path, "generic_resources", itoa(i)), "it has no discrete_resource_spec: name kind and value below it")
			continue
		}
		out.Generic = append(out.Generic, &skepv1.GenericResource{Kind: g.DiscreteResourceSpec.Kind, Value: g.DiscreteResourceSpec.Value})
	}
	return out
}

// cpus are billionths of a processor, exactly as the text says: the library's number has 32 bits.
func (s *loading) cpus(path []string, v any) int64 {
	if v == nil {
		return 0
	}
	text := strings.TrimSpace(fmt.Sprint(v))
	n, ok := new(big.Rat).SetString(text)
	if !ok || len(text) > 20 || strings.ContainsAny(text, "/eE") {
		s.wrongAt(path, "it is no number of processors: write one such as '0.5'")
		return 0
	}
	n.Mul(n, big.NewRat(1e9, 1))
	if !n.IsInt() || n.Sign() < 0 || !n.Num().IsInt64() {
		s.wrongAt(path, "it must be 0 or more, with at most 9 digits after the point")
		return 0
	}
	return n.Num().Int64()
}

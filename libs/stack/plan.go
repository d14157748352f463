package stack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	create = skepv1.StackChange_VERB_CREATE
	change = skepv1.StackChange_VERB_CHANGE
	keep   = skepv1.StackChange_VERB_KEEP
	remove = skepv1.StackChange_VERB_REMOVE
	leave  = skepv1.StackChange_VERB_LEAVE
)

// Plan is what is to be done, in this order: services that go, each before what it depends on, so that their ports are free;
// networks; secrets and configs, which are in the vault already; services, each after those it depends on; networks, secrets
// and configs that go; what is left behind. The only error is a circle of dependencies.
func Plan(in Input) ([]*Op, error) {
	want := in.Want
	if want == nil {
		want = &skepv1.StackSpec{}
	}
	services, err := Order(want.Services)
	if err != nil {
		return nil, err
	}
	p := planner{Input: in, own: map[string]*skepv1.StackMember{}, wanted: map[string]bool{}}
	for _, m := range in.Members {
		p.own[key(m.Kind, m.Name)] = m
	}
	var made []*Op
	for _, n := range want.Networks {
		made = append(made, p.network(n))
	}
	for _, l := range []struct {
		kind      string
		want, was []*skepv1.StackFile
	}{{Secret, want.Secrets, in.Was.GetSecrets()}, {Config, want.Configs, in.Was.GetConfigs()}} {
		for _, f := range l.want {
			made = append(made, p.file(l.kind, f, l.was))
		}
	}
	for _, s := range services {
		made = append(made, p.service(s, services))
	}
	first, last, left := p.rest()
	return slices.Concat(first, made, last, left), nil
}

type planner struct {
	Input
	own    map[string]*skepv1.StackMember // by kind and name
	wanted map[string]bool                // kinds and names
}

func key(kind, name string) string { return kind + "\x00" + strings.ToLower(name) }

// begin is a step for a wanted object. It is the stack's own if the member of that name is the object that has the name.
func (p *planner) begin(kind, name, has string) *Op {
	p.wanted[key(kind, name)] = true
	o := &Op{Kind: kind, Name: name, ID: has, Verb: keep}
	m := p.own[key(kind, name)]
	switch {
	case has == "":
		o.Verb = create
	case m == nil || m.Id != has:
		o.Refused = fmt.Sprintf("%s %s exists and is not of this stack: remove it, or deploy under another name", kind, name)
	}
	return o
}

func (p *planner) network(n *skepv1.NetworkSpec) *Op {
	has := p.Have.Network(n.Name)
	o := p.begin(Network, n.Name, has.GetMeta().GetId())
	o.Network = n
	if has == nil || o.Refused != "" {
		return o
	}
	was := has.Spec
	if d := slices.DeleteFunc(differing(was, n), func(f string) bool { return f == "labels" }); len(d) > 0 {
		o.Refused = fmt.Sprintf("network %s exists with other options (%s), and a network cannot change: undo that, or name a new network and remove this one", n.Name, strings.Join(d, ", "))
	} else if len(differing(was, n)) > 0 {
		o.Note = fmt.Sprintf("network %s keeps the labels it was made with: a network cannot change", n.Name)
	}
	return o
}

// differing are the names of the fields in which two messages of a type differ.
func differing(a, b proto.Message) (out []string) {
	x, y := a.ProtoReflect(), b.ProtoReflect()
	fields := x.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); !x.Get(f).Equal(y.Get(f)) {
			out = append(out, word(f))
		}
	}
	return out
}

func word(f protoreflect.FieldDescriptor) string {
	return strings.ReplaceAll(string(f.Name()), "_", " ")
}

func (p *planner) file(kind string, f *skepv1.StackFile, was []*skepv1.StackFile) *Op {
	p.wanted[key(kind, f.Name)] = true
	o := &Op{Kind: kind, Name: f.Name, ID: f.Id, Verb: keep}
	i := slices.IndexFunc(was, func(w *skepv1.StackFile) bool { return w.Name == f.Name })
	switch {
	case i < 0 || f.Id == "" || was[i].Id != f.Id:
		o.Verb = create
	case was[i].Version != f.Version:
		o.Verb, o.Fields = change, []string{fmt.Sprintf("version %d -> %d", was[i].Version, f.Version)}
	}
	return o
}

func (p *planner) service(want *skepv1.ServiceSpec, all []*skepv1.ServiceSpec) *Op {
	cur := p.Have.Service(want.Name)
	o := p.begin(Service, want.Name, cur.GetMeta().GetId())
	for _, d := range want.DependsOn {
		if slices.ContainsFunc(all, func(s *skepv1.ServiceSpec) bool { return strings.EqualFold(s.Name, d.Service) }) {
			o.Needs = append(o.Needs, d.Service)
		}
	}
	o.Over = cur.GetMeta().GetVersion()
	o.Service = p.asked(want, cur.GetSpec())
	if cur == nil || o.Refused != "" {
		return o
	}
	if spec.Mode(cur.Spec) != spec.Mode(want) {
		o.Refused = fmt.Sprintf("service %s is %s and cannot become %s: remove it first, or name it anew", want.Name, spec.Mode(cur.Spec), spec.Mode(want))
		return o
	}
	if has := p.Have.named(cur.Spec); !proto.Equal(has, o.Service) {
		o.Verb, o.Fields = change, spec.Changes(has, o.Service)
	}
	return o
}

// rest are the members that are not wanted: services that go, the others that go, those that stay.
func (p *planner) rest() (services, others, left []*Op) {
	var bodies []*skepv1.ServiceSpec
	ops := map[string]*Op{}
	for _, m := range p.Members {
		if p.wanted[key(m.Kind, m.Name)] {
			continue
		}
		o := &Op{Kind: m.Kind, Name: m.Name, ID: m.Id, Verb: remove}
		switch m.Kind {
		case Service:
			if s := p.Have.Service(m.Name); s.GetMeta().GetId() == m.Id && s != nil {
				bodies = append(bodies, p.Have.named(s.Spec))
			} else {
				o.Gone = true
			}
		case Network:
			n := p.Have.Network(m.Name)
			o.Gone = n == nil || n.Meta.Id != m.Id
		}
		switch {
		case !o.Gone && (p.Prune == nil || !p.Prune(m)):
			o.Verb = leave
			left = append(left, o)
			if m.Kind == Service {
				bodies = bodies[:len(bodies)-1]
			}
		case m.Kind == Service && !o.Gone:
			ops[strings.ToLower(m.Name)] = o
		default:
			others = append(others, o)
		}
	}
	// What somebody made depend on itself in a circle by hand goes in any order.
	if ordered, err := Order(bodies); err == nil {
		bodies = ordered
	}
	slices.Reverse(bodies)
	for _, s := range bodies {
		services = append(services, ops[strings.ToLower(s.Name)])
	}
	rank := map[string]int{Service: 0, Network: 1, Secret: 2, Config: 3}
	byKind := func(a, b *Op) int { return cmp.Or(rank[a.Kind]-rank[b.Kind], cmp.Compare(a.Name, b.Name)) }
	slices.SortFunc(others, byKind)
	slices.SortFunc(left, byKind)
	return services, others, left
}

// Order is services by name, each after those of them that it depends on. A circle is refused by name.
func Order(services []*skepv1.ServiceSpec) ([]*skepv1.ServiceSpec, error) {
	list := slices.SortedFunc(slices.Values(services), func(a, b *skepv1.ServiceSpec) int { return cmp.Compare(a.Name, b.Name) })
	byName := map[string]*skepv1.ServiceSpec{}
	for _, s := range list {
		byName[strings.ToLower(s.Name)] = s
	}
	var out []*skepv1.ServiceSpec
	const under, done = 1, 2
	state := map[*skepv1.ServiceSpec]int{}
	var path []string
	var visit func(s *skepv1.ServiceSpec) error
	visit = func(s *skepv1.ServiceSpec) error {
		if state[s] == done {
			return nil
		}
		path = append(path, s.Name)
		if state[s] == under {
			from := slices.Index(path, s.Name)
			return fault.Invalid("services depend on one another in a circle, each would wait for the other: %s", strings.Join(path[from:], " -> "))
		}
		state[s] = under
		for _, d := range s.DependsOn {
			if on := byName[strings.ToLower(d.GetService())]; on != nil {
				if err := visit(on); err != nil {
					return err
				}
			}
		}
		state[s], path = done, path[:len(path)-1]
		out = append(out, s)
		return nil
	}
	for _, s := range list {
		if err := visit(s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

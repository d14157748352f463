package stack

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// cluster is a model of what state does: names are found whatever their case, specs hold ids.
type cluster struct {
	services map[string]*skepv1.Service // by id
	networks map[string]*skepv1.Network
	members  []*skepv1.StackMember
	ids      int
}

func newCluster() *cluster {
	return &cluster{services: map[string]*skepv1.Service{}, networks: map[string]*skepv1.Network{}}
}

func (c *cluster) id() string { c.ids++; return fmt.Sprintf("id%d", c.ids) }

func (c *cluster) have() Have {
	return Have{
		Service: func(name string) *skepv1.Service {
			for _, s := range c.services {
				if strings.EqualFold(s.Spec.Name, name) {
					return proto.CloneOf(s)
				}
			}
			return nil
		},
		Network: func(name string) *skepv1.Network {
			for _, n := range c.networks {
				if strings.EqualFold(n.Spec.Name, name) {
					return proto.CloneOf(n)
				}
			}
			return nil
		},
		ServiceName: func(id string) string { return c.services[id].GetSpec().GetName() },
		NetworkName: func(id string) string { return c.networks[id].GetSpec().GetName() },
	}
}

// resolved is a spec with ids for names, refused when one is not there.
func (c *cluster) resolved(in *skepv1.ServiceSpec) (*skepv1.ServiceSpec, error) {
	out, h := proto.CloneOf(in), c.have()
	for _, n := range out.Task.Networks {
		o := h.Network(n.Target)
		if o == nil {
			return nil, fmt.Errorf("no network %s", n.Target)
		}
		n.Target = o.Meta.Id
	}
	for _, d := range out.DependsOn {
		o := h.Service(d.Service)
		if o == nil {
			return nil, fmt.Errorf("no service %s", d.Service)
		}
		d.Service = o.Meta.Id
	}
	for _, f := range out.Task.Container.Secrets {
		if f.Id == "" {
			f.Id = "vault-" + f.Name
		}
		if f.Version == 0 {
			f.Version = 1
		}
	}
	return out, nil
}

func (c *cluster) member(kind, name string) *skepv1.StackMember {
	for _, m := range c.members {
		if m.Kind == kind && m.Name == name {
			return m
		}
	}
	return nil
}

func (c *cluster) forget(kind, name string) {
	c.members = slices.DeleteFunc(c.members, func(m *skepv1.StackMember) bool { return m.Kind == kind && m.Name == name })
}

// do does one step as state would, and says what would be wrong with that.
func (c *cluster) do(o *Op) error {
	if o.Refused != "" {
		return fmt.Errorf("refused: %s", o.Refused)
	}
	switch {
	case !o.Does():
	case o.Gone:
		c.forget(o.Kind, o.Name)
	case o.Verb == remove:
		if m := c.member(o.Kind, o.Name); m == nil || m.Id != o.ID {
			return fmt.Errorf("%s %s is removed and is no member", o.Kind, o.Name)
		}
		if o.Kind == Network {
			for _, s := range c.services {
				if slices.ContainsFunc(s.Spec.Task.Networks, func(n *skepv1.NetworkAttachment) bool { return n.Target == o.ID }) {
					return fmt.Errorf("network %s is in use by %s", o.Name, s.Spec.Name)
				}
			}
		}
		delete(c.services, o.ID)
		delete(c.networks, o.ID)
		c.forget(o.Kind, o.Name)
	case o.Kind == Network:
		id := c.id()
		c.networks[id] = &skepv1.Network{Meta: &skepv1.Meta{Id: id}, Spec: proto.CloneOf(o.Network)}
		c.forget(o.Kind, o.Name)
		c.members = append(c.members, &skepv1.StackMember{Kind: Network, Id: id, Name: o.Name})
	case o.Kind == Service:
		want, err := c.resolved(o.Service)
		if err != nil {
			return err
		}
		id := o.ID
		if o.Verb == create {
			id = c.id()
			c.forget(o.Kind, o.Name)
			c.members = append(c.members, &skepv1.StackMember{Kind: Service, Id: id, Name: o.Name})
		} else if m := c.member(Service, o.Name); m == nil || m.Id != id {
			return fmt.Errorf("service %s is changed and is no member", o.Name)
		}
		c.services[id] = &skepv1.Service{Meta: &skepv1.Meta{Id: id}, Spec: want}
	}
	return nil
}

// service is a spec as deploy stores it: with its defaults.
func service(name string, set ...func(*skepv1.ServiceSpec)) *skepv1.ServiceSpec {
	s := &skepv1.ServiceSpec{Name: name, Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "httpd:latest"}}, Mode: spec.Replicated(1)}
	for _, f := range set {
		f(s)
	}
	spec.Defaults(s)
	return s
}

func on(network string) func(*skepv1.ServiceSpec) {
	return func(s *skepv1.ServiceSpec) {
		s.Task.Networks = append(s.Task.Networks, &skepv1.NetworkAttachment{Target: network})
	}
}

func after(name string) func(*skepv1.ServiceSpec) {
	return func(s *skepv1.ServiceSpec) {
		s.DependsOn = append(s.DependsOn, &skepv1.Dependency{Service: name})
	}
}

func reads(name string) func(*skepv1.ServiceSpec) {
	return func(s *skepv1.ServiceSpec) {
		s.Task.Container.Secrets = append(s.Task.Container.Secrets, &skepv1.FileReference{Name: name})
	}
}

var letters = []string{"a", "b", "c", "d", "e"}

// anyStack draws what somebody may ask for: dependencies lead from later letters to earlier ones, or the other way round, so
// that they turn from one deploy to the next.
func anyStack(t *rapid.T) *skepv1.StackSpec {
	out := &skepv1.StackSpec{Name: "s"}
	for _, n := range []string{"net1", "net2"} {
		if rapid.Bool().Draw(t, n) {
			out.Networks = append(out.Networks, &skepv1.NetworkSpec{Name: n, Driver: "overlay"})
		}
	}
	if v := rapid.Uint64Range(0, 3).Draw(t, "version"); v > 0 {
		out.Secrets = append(out.Secrets, &skepv1.StackFile{Name: "pw", Id: "vault-pw", Version: v})
	}
	var names []string
	for _, l := range letters {
		if rapid.Bool().Draw(t, l) {
			names = append(names, l)
		}
	}
	if rapid.Bool().Draw(t, "turned") {
		slices.Reverse(names)
	}
	for i, n := range names {
		var set []func(*skepv1.ServiceSpec)
		for _, net := range out.Networks {
			if rapid.Bool().Draw(t, n+net.Name) {
				set = append(set, on(net.Name))
			}
		}
		for _, d := range names[:i] {
			if rapid.Bool().Draw(t, n+d) {
				set = append(set, after(d))
			}
		}
		if rapid.Bool().Draw(t, n+"pw") {
			set = append(set, reads("pw"))
		}
		env := rapid.SampledFrom([]string{"A=1", "A=2"}).Draw(t, n+"env")
		out.Services = append(out.Services, service(n, append(set, func(s *skepv1.ServiceSpec) { s.Task.Container.Env = []string{env} })...))
	}
	return out
}

func (c *cluster) plan(t interface{ Fatal(...any) }, want *skepv1.StackSpec, prune bool) []*Op {
	in := Input{Want: want, Was: want, Members: c.members, Have: c.have()}
	if prune || want == nil {
		in.Prune = func(*skepv1.StackMember) bool { return true }
	}
	ops, err := Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	return ops
}

// A plan that was carried out leaves nothing to do; whatever part of it was carried out, and whatever deploy came before,
// planning again and going on comes to the same end; and what others have is as it was.
func TestPlansAreFinished(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster()
		other := &skepv1.Service{Meta: &skepv1.Meta{Id: "theirs"}, Spec: service("theirs")}
		c.services["theirs"] = proto.CloneOf(other)
		c.networks["theirnet"] = &skepv1.Network{Meta: &skepv1.Meta{Id: "theirnet"}, Spec: &skepv1.NetworkSpec{Name: "theirnet"}}
		steps := rapid.IntRange(1, 4).Draw(t, "deploys")
		var want *skepv1.StackSpec
		prune := false
		for i := range steps {
			want, prune = anyStack(t), rapid.Bool().Draw(t, "prune")
			if i == steps-1 && rapid.Bool().Draw(t, "rm") {
				want = nil
			}
			ops := c.plan(t, want, prune)
			n := rapid.IntRange(0, len(ops)).Draw(t, "done")
			for _, o := range ops[:n] {
				if err := c.do(o); err != nil {
					t.Fatalf("%s %s %s: %v", o.Verb, o.Kind, o.Name, err)
				}
			}
			if rapid.Bool().Draw(t, "by hand") {
				c.byHand(t)
			}
		}
		for _, o := range c.plan(t, want, prune) {
			if err := c.do(o); err != nil {
				t.Fatalf("%s %s %s: %v", o.Verb, o.Kind, o.Name, err)
			}
		}
		for _, o := range c.plan(t, want, prune) {
			if o.Does() && !(o.Verb == create && (o.Kind == Secret || o.Kind == Config)) || o.Refused != "" {
				t.Fatalf("left to do: %s %s %s %v %s", o.Verb, o.Kind, o.Name, o.Fields, o.Refused)
			}
		}
		if !proto.Equal(c.services["theirs"], other) || c.networks["theirnet"] == nil {
			t.Fatal("another's service or network was touched")
		}
		if want == nil && (len(c.members) > 0 || len(c.services) != 1 || len(c.networks) != 1) {
			t.Fatal("not all of it went", slices.Collect(maps.Keys(c.services)), slices.Collect(maps.Keys(c.networks)))
		}
		for _, s := range want.GetServices() {
			if c.have().Service(s.Name) == nil {
				t.Fatalf("service %s is missing", s.Name)
			}
		}
	})
}

// byHand does what people do to a stack's services besides deploying.
func (c *cluster) byHand(t *rapid.T) {
	ids := slices.Sorted(maps.Keys(c.services))
	id := rapid.SampledFrom(ids).Draw(t, "whose")
	if id == "theirs" {
		return
	}
	switch s := c.services[id]; rapid.IntRange(0, 2).Draw(t, "what") {
	case 0:
		delete(c.services, id)
	case 1:
		s.Spec.Mode = spec.Replicated(9)
	case 2:
		s.Spec.Task.ForceUpdate++
	}
}

func show(ops []*Op) string {
	var out []string
	for _, o := range ops {
		text := strings.ToLower(strings.TrimPrefix(o.Verb.String(), "VERB_")) + " " + o.Kind + " " + o.Name
		if len(o.Fields) > 0 {
			text += " (" + strings.Join(o.Fields, "; ") + ")"
		}
		if o.Refused != "" {
			text += ": " + o.Refused
		}
		out = append(out, text)
	}
	return strings.Join(out, "\n")
}

func TestOrder(t *testing.T) {
	want := &skepv1.StackSpec{Name: "s", Networks: []*skepv1.NetworkSpec{{Name: "net"}},
		Services: []*skepv1.ServiceSpec{service("a", after("b"), on("net")), service("b", after("c"), after("elsewhere")), service("c")}}
	c := newCluster()
	c.services["x"] = &skepv1.Service{Meta: &skepv1.Meta{Id: "x"}, Spec: service("elsewhere")}
	ops := c.plan(t, want, false)
	if got := show(ops); got != "create network net\ncreate service c\ncreate service b\ncreate service a" || fmt.Sprint(ops[3].Needs, ops[2].Needs) != "[b] [c]" {
		t.Fatal(got)
	}
	for _, o := range ops {
		if err := c.do(o); err != nil {
			t.Fatal(err)
		}
	}
	if got := show(c.plan(t, nil, true)); got != "remove service a\nremove service b\nremove service c\nremove network net" {
		t.Fatal(got)
	}
	want.Services[2].DependsOn = []*skepv1.Dependency{{Service: "a"}}
	if _, err := Plan(Input{Want: want, Have: c.have()}); err == nil || err.Error() != "services depend on one another in a circle, each would wait for the other: a -> b -> c -> a" {
		t.Fatal(err)
	}
}

// What is refused, and what is left as somebody has it.
func TestWhatIsNotOurs(t *testing.T) {
	c := newCluster()
	c.services["x"] = &skepv1.Service{Meta: &skepv1.Meta{Id: "x"}, Spec: service("a")}
	c.networks["y"] = &skepv1.Network{Meta: &skepv1.Meta{Id: "y"}, Spec: &skepv1.NetworkSpec{Name: "NET"}}
	want := &skepv1.StackSpec{Name: "s", Networks: []*skepv1.NetworkSpec{{Name: "net"}}, Services: []*skepv1.ServiceSpec{service("A")}}
	if got := show(c.plan(t, want, true)); got != "keep network net: network net exists and is not of this stack: remove it, or deploy under another name\n"+
		"keep service A: service A exists and is not of this stack: remove it, or deploy under another name" {
		t.Fatal(got)
	}
	// A member whose id another object has taken the name of is no member any more.
	c.members = []*skepv1.StackMember{{Kind: Service, Id: "old", Name: "a"}, {Kind: Network, Id: "y", Name: "net"}}
	want.Networks[0].Internal = true
	if got := show(c.plan(t, want, true)); !strings.Contains(got, "network net exists with other options (name, internal)") || !strings.Contains(got, "service A exists and is not of this stack") {
		t.Fatal(got)
	}
	if got := show(c.plan(t, nil, true)); got != "remove service a\nremove network net" {
		t.Fatal(got)
	}
	// Mode, and labels of a network.
	c.networks["y"].Spec = &skepv1.NetworkSpec{Name: "net", Labels: map[string]string{"a": "b"}}
	c.members[0].Id = "x"
	want = &skepv1.StackSpec{Name: "s", Networks: []*skepv1.NetworkSpec{{Name: "net"}},
		Services: []*skepv1.ServiceSpec{service("a", func(s *skepv1.ServiceSpec) { s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{}} })}}
	ops := c.plan(t, want, true)
	if got := show(ops); got != "keep network net\nkeep service a: service a is replicated and cannot become global: remove it first, or name it anew" || ops[0].Note == "" {
		t.Fatal(got, ops[0])
	}
}

// Which versions of secrets a service gets.
func TestVersions(t *testing.T) {
	for _, x := range []struct {
		what           string
		stack, service uint64
		pinned, exact  bool
		want           uint64
	}{
		{"new", 2, 0, false, false, 2},
		{"newer in the stack", 3, 2, false, false, 3},
		{"newer by hand", 2, 3, false, false, 3},
		{"back", 2, 3, false, true, 2},
		{"pinned in the file", 5, 3, true, false, 1},
	} {
		c := newCluster()
		want := &skepv1.StackSpec{Name: "s", Secrets: []*skepv1.StackFile{{Name: "pw", Id: "vault-pw", Version: x.stack}}, Services: []*skepv1.ServiceSpec{service("a", reads("pw"))}}
		if x.pinned {
			f := want.Services[0].Task.Container.Secrets[0]
			f.Version, f.Pinned = 1, true
		}
		if x.service > 0 {
			has := service("a", reads("pw"))
			has.Task.Container.Secrets[0].Id, has.Task.Container.Secrets[0].Version = "vault-pw", x.service
			c.services["a1"] = &skepv1.Service{Meta: &skepv1.Meta{Id: "a1"}, Spec: has}
			c.members = []*skepv1.StackMember{{Kind: Service, Id: "a1", Name: "a"}}
		}
		ops, err := Plan(Input{Want: want, Members: c.members, Have: c.have(), Exact: x.exact})
		if err != nil {
			t.Fatal(err)
		}
		if f := ops[1].Service.Task.Container.Secrets[0]; f.Version != x.want || f.Id != "vault-pw" {
			t.Errorf("%s: version %d of %s", x.what, f.Version, f.Id)
		}
	}
	// Of others: as the service has it, whatever is newest by now.
	c := newCluster()
	has := service("a", reads("theirs"))
	has.Task.Container.Secrets[0].Id, has.Task.Container.Secrets[0].Version = "vault-theirs", 4
	c.services["a1"] = &skepv1.Service{Meta: &skepv1.Meta{Id: "a1"}, Spec: has}
	c.members = []*skepv1.StackMember{{Kind: Service, Id: "a1", Name: "a"}}
	if got := show(c.plan(t, &skepv1.StackSpec{Services: []*skepv1.ServiceSpec{service("a", reads("theirs"))}}, false)); got != "keep service a" {
		t.Fatal(got)
	}
}

// Lines of secrets say what became of them since the revision before.
func TestLinesOfFiles(t *testing.T) {
	file := func(id string, v uint64) *skepv1.StackSpec {
		return &skepv1.StackSpec{Configs: []*skepv1.StackFile{{Name: "conf", Id: id, Version: v}}}
	}
	for _, x := range []struct {
		was, want *skepv1.StackSpec
		line      string
	}{
		{nil, file("", 0), "create config conf"},
		{nil, file("c", 1), "create config conf"},
		{file("c", 1), file("c", 1), "keep config conf"},
		{file("c", 1), file("c", 3), "change config conf (version 1 -> 3)"},
		{file("gone", 3), file("c", 1), "create config conf"},
	} {
		ops, err := Plan(Input{Want: x.want, Was: x.was, Have: newCluster().have()})
		if err != nil || show(ops) != x.line {
			t.Errorf("%s, want %s: %v", show(ops), x.line, err)
		}
	}
}

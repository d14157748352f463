package place

import (
	"fmt"
	"testing"

	"skep.dev/libs/constraint"
)

func nodes(n int, change func(i int, n *Node)) []Node {
	out := make([]Node, n)
	for i := range out {
		out[i] = Node{Node: constraint.Node{ID: fmt.Sprint("n", i), OS: "linux", Arch: "amd64"}, Ready: true, CPU: 4e9, Memory: 8 << 30}
		out[i].FreeCPU, out[i].FreeMemory = out[i].CPU, out[i].Memory
		if change != nil {
			change(i, &out[i])
		}
	}
	return out
}

func perNode(n int, ps []Placement) []int {
	out := make([]int, n)
	for _, p := range ps {
		out[p.Node]++
	}
	return out
}

func expect(t *testing.T, got []int, want ...int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestOnePerNodeThenByFreeResources(t *testing.T) {
	rich := func(i int, n *Node) {
		if i == 0 {
			n.CPU, n.Memory, n.FreeCPU, n.FreeMemory = 16e9, 32<<30, 16e9, 32<<30
		}
	}
	expect(t, perNode(3, New(nodes(3, rich)).Place(nil, &Request{}, 3, nil, nil)), 1, 1, 1)
	expect(t, perNode(3, New(nodes(3, rich)).Place(nil, &Request{}, 12, nil, nil)), 8, 2, 2)
	r := &Request{CPU: 1e9, Memory: 1 << 30}
	expect(t, perNode(3, New(nodes(3, rich)).Place(nil, r, 12, nil, nil)), 8, 2, 2)
	// Reserved by others counts as not there.
	used := func(i int, n *Node) {
		if i == 1 {
			n.FreeCPU, n.FreeMemory = n.CPU/4, n.Memory/4
		}
	}
	expect(t, perNode(3, New(nodes(3, used)).Place(nil, &Request{}, 9, nil, nil)), 4, 1, 4)
}

func TestExistingTasksCount(t *testing.T) {
	e := New(nodes(3, nil))
	expect(t, perNode(3, e.Place(nil, &Request{}, 2, []Count{{Node: 1, N: 1}}, nil)), 1, 0, 1)
	e = New(nodes(3, nil))
	expect(t, perNode(3, e.Place(nil, &Request{}, 4, []Count{{Node: 0, N: 3}, {Node: 1, N: 1}}, nil)), 0, 2, 2)
}

func TestCapacityAndWhy(t *testing.T) {
	e := New(nodes(4, func(i int, n *Node) {
		if i > 0 {
			n.Labels = map[string]string{"zone": "b"}
		}
	}))
	r := &Request{CPU: 3e9, Constraints: []string{"node.labels.zone!=b"}}
	got := e.Place(nil, r, 2, nil, nil)
	expect(t, perNode(4, got), 1, 0, 0, 0)
	if why := e.Why(r, nil); why != "no suitable node (scheduling constraints not satisfied on 3 nodes; insufficient resources on 1 node)" {
		t.Fatal(why)
	}
	if why := New(nil).Why(r, nil); why != "no suitable node" {
		t.Fatal(why)
	}
	down := New(nodes(2, func(_ int, n *Node) { n.Ready = false }))
	if why := down.Why(r, nil); why != "no suitable node (2 nodes not available for new tasks)" {
		t.Fatal(why)
	}
}

func TestHostPortsAndMaxPerNode(t *testing.T) {
	r := &Request{Ports: []Port{MakePort("tcp", 80, "")}}
	e := New(nodes(3, func(i int, n *Node) {
		if i == 1 {
			n.Ports = []Port{MakePort("tcp", 80, "")}
		}
		if i == 2 {
			n.Ports = []Port{MakePort("udp", 80, "")}
		}
	}))
	expect(t, perNode(3, e.Place(nil, r, 5, nil, nil)), 1, 0, 1)
	if why := e.Why(r, nil); why != "no suitable node (host-mode port already in use on 3 nodes)" {
		t.Fatal(why)
	}
	m := &Request{MaxPerNode: 2}
	e = New(nodes(3, nil))
	expect(t, perNode(3, e.Place(nil, m, 9, []Count{{Node: 0, N: 1}}, nil)), 1, 2, 2)
	if why := e.Why(m, []Count{{0, 2}, {1, 2}, {2, 2}}); why != "no suitable node (max replicas per node limit exceed)" {
		t.Fatal(why)
	}
	x := New(nodes(2, func(_ int, n *Node) { n.MaxTasks = 3 }))
	expect(t, perNode(2, x.Place(nil, &Request{}, 9, nil, nil)), 3, 3)
}

func TestFailuresComeLast(t *testing.T) {
	e := New(nodes(3, nil))
	f := []Count{{Node: 0, N: 7}, {Node: 1, N: 5}, {Node: 2, N: 4}}
	expect(t, perNode(3, e.Place(nil, &Request{}, 3, nil, f)), 0, 0, 3)
	e = New(nodes(3, nil))
	expect(t, perNode(3, e.Place(nil, &Request{MaxPerNode: 1}, 2, nil, f)), 0, 1, 1)
}

func TestSpread(t *testing.T) {
	zones := func(i int, n *Node) {
		z := "a"
		if i == 5 {
			z = "b"
		}
		n.Labels = map[string]string{"zone": z, "rack": fmt.Sprint(i / 2)}
	}
	e := New(nodes(6, zones))
	got := perNode(6, e.Place(nil, &Request{Spread: []string{"node.labels.zone"}}, 10, nil, nil))
	expect(t, got, 1, 1, 1, 1, 1, 5)
	e = New(nodes(6, zones))
	got = perNode(6, e.Place(nil, &Request{Spread: []string{"node.labels.zone", "node.labels.rack"}}, 12, nil, nil))
	expect(t, got, 1, 1, 1, 1, 2, 6)
	// A branch that is full gives its share to the others; existing tasks count.
	e = New(nodes(6, zones))
	got = perNode(6, e.Place(nil, &Request{Spread: []string{"node.labels.zone"}, MaxPerNode: 2}, 10, []Count{{Node: 5, N: 1}}, nil))
	expect(t, got, 2, 2, 2, 2, 1, 1)
	// One-task services do not all land in the first branch.
	e = New(nodes(6, zones))
	sum := make([]int, 6)
	for range 12 {
		for i, n := range perNode(6, e.Place(nil, &Request{Spread: []string{"node.labels.zone"}}, 1, nil, nil)) {
			sum[i] += n
		}
	}
	expect(t, sum, 2, 2, 2, 2, 2, 2)
}

func TestPlatformPluginsGeneric(t *testing.T) {
	e := New(nodes(3, func(i int, n *Node) {
		n.Arch = []string{"amd64", "arm64", "x86_64"}[i]
		if i == 2 {
			n.Plugins = []Plugin{{"Volume", "local"}, {"Volume", "nfs:latest"}}
			n.FreeGeneric = []Generic{{Kind: "GPU", Named: []string{"u1", "u2", "u3"}}, {Kind: "SSD", Value: 2}}
		}
	}))
	expect(t, perNode(3, e.Place(nil, &Request{Platforms: []Platform{{"linux", "amd64"}}}, 2, nil, nil)), 1, 0, 1)
	expect(t, perNode(3, e.Place(nil, &Request{Plugins: []Plugin{{"Volume", "nfs"}}}, 2, nil, nil)), 0, 0, 2)
	got := e.Place(nil, &Request{Generic: []Generic{{Kind: "GPU", Value: 2}, {Kind: "SSD", Value: 1}}}, 2, nil, nil)
	expect(t, perNode(3, got), 0, 0, 1)
	if fmt.Sprint(got[0].Assigned) != "[{GPU 0 [u1 u2]} {SSD 1 []}]" {
		t.Fatal(got[0].Assigned)
	}
}

func TestPin(t *testing.T) {
	e := New(nodes(2, nil))
	r := &Request{CPU: 3e9}
	if _, f, ok := e.Pin(r, 1, 0); !ok {
		t.Fatal(f)
	}
	if _, f, ok := e.Pin(r, 1, 1); ok || f != Resources {
		t.Fatal(f, ok)
	}
	x := e.Explain(r, nil, nil)
	if x.Summary != "1 of 2 nodes suit" || len(x.Removed) != 1 || x.Removed[0].Reason != "needs 3 CPUs, 1 of 4 free" || x.Candidates[0].Node != 0 {
		t.Fatalf("%+v", x)
	}
}

// Tasks may hold one port at different addresses of a node; who holds it at all of them holds it alone.
func TestPortsAtOneAddress(t *testing.T) {
	one, two, all := MakePort("tcp", 80, "127.0.0.1"), MakePort("tcp", 80, "10.0.0.1"), MakePort("tcp", 80, "")
	for _, c := range []struct {
		held, asked Port
		free        bool
	}{
		{one, two, true}, {one, one, false}, {one, all, false}, {all, one, false}, {all, all, false},
		{one, MakePort("udp", 80, "127.0.0.1"), true}, {one, MakePort("tcp", 81, "127.0.0.1"), true},
	} {
		e := New(nodes(1, func(_ int, n *Node) { n.Ports = []Port{c.held} }))
		r := &Request{Ports: []Port{c.asked}}
		_, filter, ok := e.Pin(r, 0, 0)
		if ok != c.free || !ok && filter != HostPorts {
			t.Errorf("%v beside %v: %v %v", c.asked, c.held, ok, filter)
		}
	}
}

package place

import (
	"hash/maphash"
	"math"
	"slices"

	"skep.dev/libs/constraint"
)

// Engine places tasks on a fixed set of nodes. It is not safe for concurrent use.
type Engine struct {
	nodes []Node
	hot   []hot    // what changes with each placement, dense
	keys  []uint64 // current heap key of each node

	perCPU, perMemory float64 // 1/average capacity, 0 = no node tells

	seed    maphash.Seed
	classes map[uint64]*class
	parsed  map[string]*compiled
	trees   map[treeKey]*tree

	have  []int32 // scratch: tasks of the batch's service per node
	fails []int32 // scratch: its failures per node
	full  []ranked
}

// hot is 32 bytes: two to a cache line.
type hot struct {
	cpu, mem int64
	weight   float32
	tasks    int32
	held     int32
	max      int32
}

type compiled struct {
	c   constraint.Constraint
	bad bool
}

// New makes an engine. The order of nodes is the last tie-break and what indexes refer to; sort it by id for plans
// that are the same wherever they are made. The engine keeps nodes and changes their FreeGeneric and Ports
// (copying those slices first).
func New(nodes []Node) *Engine {
	e := &Engine{
		nodes: nodes, hot: make([]hot, len(nodes)), keys: make([]uint64, len(nodes)),
		seed: maphash.MakeSeed(), classes: map[uint64]*class{}, parsed: map[string]*compiled{}, trees: map[treeKey]*tree{},
		have: make([]int32, len(nodes)), fails: make([]int32, len(nodes)),
	}
	var cpu, mem float64
	for i := range nodes {
		cpu += float64(nodes[i].CPU)
		mem += float64(nodes[i].Memory)
	}
	if cpu > 0 {
		e.perCPU = float64(len(nodes)) / cpu
	}
	if mem > 0 {
		e.perMemory = float64(len(nodes)) / mem
	}
	for i := range nodes {
		n := &nodes[i]
		e.hot[i] = hot{cpu: n.FreeCPU, mem: n.FreeMemory, tasks: int32(n.Tasks), held: int32(n.Held), max: int32(n.MaxTasks)}
		e.rekey(int32(i), true)
	}
	return e
}

// minWeight keeps a fully reserved node in the running for tasks that reserve nothing, far behind the others.
const minWeight = 1.0 / 256

// rekey recomputes a node's heap key: the bits of its load (positive floats order as their bits), then its index.
func (e *Engine) rekey(i int32, resources bool) {
	h := &e.hot[i]
	if resources {
		w, known := 0.0, 0.0
		n := &e.nodes[i]
		if e.perCPU > 0 && n.CPU > 0 {
			w += float64(h.cpu) * e.perCPU
			known++
		}
		if e.perMemory > 0 && n.Memory > 0 {
			w += float64(h.mem) * e.perMemory
			known++
		}
		switch {
		case known == 0:
			w = 1
		default:
			w /= known
		}
		h.weight = float32(max(w, minWeight))
	}
	e.keys[i] = uint64(math.Float32bits(float32(h.tasks+1)/h.weight))<<32 | uint64(uint32(i))
}

// Place puts up to n tasks on nodes and appends where to dst; fewer than n appended means that no node suits the
// rest (Why tells). have lists the nodes that run tasks of the service already, failures those where it failed
// within the last five minutes.
func (e *Engine) Place(dst []Placement, r *Request, n int, have, failures []Count) []Placement {
	for _, c := range have {
		e.have[c.Node] += c.N
	}
	for _, c := range failures {
		if c.N >= FailureLimit {
			e.fails[c.Node] = c.N
		}
	}
	start := len(dst)
	cl := e.class(r)
	if len(r.Spread) > 0 {
		dst = e.placeSpread(dst, r, cl, n, have)
	} else {
		p := picker{e: e, c: cl, r: r}
		for range n {
			i := p.next()
			if i < 0 {
				break
			}
			dst = append(dst, Placement{Node: i, Assigned: e.take(i, r)})
		}
		p.done()
	}
	for _, c := range have {
		e.have[c.Node] = 0
	}
	for _, p := range dst[start:] {
		e.have[p.Node] = 0
	}
	for _, c := range failures {
		e.fails[c.Node] = 0
	}
	return dst
}

// Pin checks a task that must run on node i (a global service's) and claims its place when it fits.
// have is how many tasks of the service the node runs already.
func (e *Engine) Pin(r *Request, i int32, have int) (Placement, Filter, bool) {
	if f := e.check(r, i, int32(have)); f != Suits {
		return Placement{}, f, false
	}
	p := Placement{Node: i, Assigned: e.take(i, r)}
	e.have[i] = 0
	return p, Suits, true
}

// take claims r on node i.
func (e *Engine) take(i int32, r *Request) []Generic {
	h := &e.hot[i]
	h.tasks++
	h.held++
	e.have[i]++
	if r.CPU != 0 || r.Memory != 0 {
		h.cpu -= r.CPU
		h.mem -= r.Memory
		e.rekey(i, true)
	} else {
		e.keys[i] = uint64(math.Float32bits(float32(h.tasks+1)/h.weight))<<32 | uint64(uint32(i))
	}
	if len(r.Ports) > 0 {
		n := &e.nodes[i]
		n.Ports = append(n.Ports[:len(n.Ports):len(n.Ports)], r.Ports...)
	}
	if len(r.Generic) > 0 {
		return e.takeGeneric(i, r)
	}
	return nil
}

func (e *Engine) takeGeneric(i int32, r *Request) []Generic {
	n := &e.nodes[i]
	free := append([]Generic(nil), n.FreeGeneric...)
	var got []Generic
	for _, want := range r.Generic {
		for k := range free {
			g := &free[k]
			if g.Kind != want.Kind {
				continue
			}
			if len(g.Named) > 0 {
				got = append(got, Generic{Kind: g.Kind, Named: g.Named[:want.Value:want.Value]})
				g.Named = g.Named[want.Value:]
			} else {
				got = append(got, Generic{Kind: g.Kind, Value: want.Value})
				g.Value -= want.Value
			}
		}
	}
	n.FreeGeneric = free
	return got
}

// room is the part of the filters that changes as tasks are placed.
func (e *Engine) room(i int32, r *Request) bool {
	h := &e.hot[i]
	if (r.CPU > 0 && h.cpu < r.CPU) || (r.Memory > 0 && h.mem < r.Memory) || (h.max > 0 && h.held >= h.max) {
		return false
	}
	return len(r.Generic) == 0 || e.genericRoom(i, r)
}

func (e *Engine) genericRoom(i int32, r *Request) bool {
	want, _ := e.genericShort(i, r)
	return want == nil
}

// genericShort is the first generic resource of which the node has not enough free, nil when it has, and how much is free.
func (e *Engine) genericShort(i int32, r *Request) (want *Generic, free int64) {
	for w := range r.Generic {
		want := &r.Generic[w]
		found, free := want.Value <= 0, int64(0)
		for k := range e.nodes[i].FreeGeneric {
			g := &e.nodes[i].FreeGeneric[k]
			if g.Kind == want.Kind {
				free = max(free, g.count())
				found = found || g.count() >= want.Value
			}
		}
		if !found {
			return want, free
		}
	}
	return nil, 0
}

func (e *Engine) portsFree(i int32, r *Request) bool { return e.portTaken(i, r) < 0 }

// portTaken is the index of the first of a request's ports that is used on the node, -1 when none is.
func (e *Engine) portTaken(i int32, r *Request) int {
	for k, want := range r.Ports {
		for _, used := range e.nodes[i].Ports {
			if used.Meets(want) {
				return k
			}
		}
	}
	return -1
}

// Return gives back what a task holds on node i, so that another may be tried in its place; Retake undoes it.
func (e *Engine) Return(i int32, r *Request, assigned []Generic) {
	e.count(i, -1)
	e.give(i, r, assigned, 1)
}

// Retake undoes Return.
func (e *Engine) Retake(i int32, r *Request, assigned []Generic) {
	e.count(i, 1)
	e.give(i, r, assigned, -1)
}

// Withhold takes resources of node i for a task that is counted already.
func (e *Engine) Withhold(i int32, r *Request, assigned []Generic) { e.give(i, r, assigned, -1) }

func (e *Engine) count(i, tasks int32) {
	e.hot[i].held += tasks
	e.hot[i].tasks += tasks
}

func (e *Engine) give(i int32, r *Request, assigned []Generic, sign int64) {
	h, n := &e.hot[i], &e.nodes[i]
	h.cpu += sign * r.CPU
	h.mem += sign * r.Memory
	e.rekey(i, true)
	if len(r.Ports) > 0 {
		ports := make([]Port, 0, len(n.Ports)+len(r.Ports))
		if sign < 0 {
			ports = append(append(ports, n.Ports...), r.Ports...)
		} else {
			for _, p := range n.Ports {
				if !slices.Contains(r.Ports, p) {
					ports = append(ports, p)
				}
			}
		}
		n.Ports = ports
	}
	if len(assigned) > 0 {
		free := slices.Clone(n.FreeGeneric)
		for _, a := range assigned {
			for k := range free {
				if free[k].Kind != a.Kind {
					continue
				}
				free[k].Value += sign * a.Value
				if sign > 0 {
					free[k].Named = slices.Concat(free[k].Named, a.Named)
				} else {
					free[k].Named = slices.DeleteFunc(slices.Clone(free[k].Named), func(s string) bool { return slices.Contains(a.Named, s) })
				}
			}
		}
		n.FreeGeneric = free
	}
}

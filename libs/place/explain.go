package place

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Filter names a step of the pipeline; the first one a node fails removes it.
type Filter uint8

// The filters in the order they run. Suits is what remains.
const (
	Ready Filter = iota
	Resources
	Plugins
	Constraints
	Platforms
	HostPorts
	MaxReplicas
	Suits
)

var filterNames = [...]string{"ready", "resources", "plugins", "constraints", "platform", "host-ports", "max-replicas", "suits"}

func (f Filter) String() string { return filterNames[f] }

// Text is Swarm's wording for n nodes that failed f.
func (f Filter) Text(n int) string {
	nodes := fmt.Sprintf("%d nodes", n)
	if n == 1 {
		nodes = "1 node"
	}
	switch f {
	case Ready:
		return nodes + " not available for new tasks"
	case Resources:
		return "insufficient resources on " + nodes
	case Plugins:
		return "missing plugin on " + nodes
	case Constraints:
		return "scheduling constraints not satisfied on " + nodes
	case Platforms:
		return "unsupported platform on " + nodes
	case HostPorts:
		return "host-mode port already in use on " + nodes
	case MaxReplicas:
		return "max replicas per node limit exceed"
	}
	return nodes + " suit"
}

// check runs the pipeline for one node.
func (e *Engine) check(r *Request, i int32, have int32) Filter {
	n := &e.nodes[i]
	switch {
	case !n.Ready:
		return Ready
	case !e.room(i, r):
		return Resources
	case !pluginsOK(n, r):
		return Plugins
	case !matches(e.compile(r.Constraints), n):
		return Constraints
	case !r.RunsOn(&n.Node):
		return Platforms
	case !e.portsFree(i, r):
		return HostPorts
	case r.MaxPerNode > 0 && int(have) >= r.MaxPerNode:
		return MaxReplicas
	}
	return Suits
}

// Why is the error text of a task that cannot be placed now, such as
// "no suitable node (scheduling constraints not satisfied on 3 nodes; insufficient resources on 1 node)".
func (e *Engine) Why(r *Request, have []Count) string {
	var counts [Suits + 1]int
	lacking := map[string]bool{}
	e.each(r, have, func(i int32, f Filter) {
		counts[f]++
		e.noteLack(lacking, i, r, f)
	})
	return summary(counts, lacking)
}

// noteLack remembers the plugin for which a node was taken out.
func (e *Engine) noteLack(lacking map[string]bool, i int32, r *Request, f Filter) {
	if f != Plugins {
		return
	}
	if p := lacks(&e.nodes[i], r); p != nil {
		lacking[p.String()] = true
	}
}

func summary(counts [Suits + 1]int, lacking map[string]bool) string {
	var order []Filter
	for f := Ready; f < Suits; f++ {
		if counts[f] > 0 {
			order = append(order, f)
		}
	}
	if len(order) == 0 {
		return "no suitable node"
	}
	slices.SortStableFunc(order, func(a, b Filter) int { return counts[b] - counts[a] })
	texts := make([]string, len(order))
	for i, f := range order {
		texts[i] = f.Text(counts[f])
		if f == Plugins {
			texts[i] += ": " + strings.Join(slices.Sorted(maps.Keys(lacking)), ", ")
		}
	}
	return "no suitable node (" + strings.Join(texts, "; ") + ")"
}

func (e *Engine) each(r *Request, have []Count, f func(i int32, f Filter)) {
	for _, c := range have {
		e.have[c.Node] += c.N
	}
	for i := range e.nodes {
		f(int32(i), e.check(r, int32(i), e.have[i]))
	}
	for _, c := range have {
		e.have[c.Node] = 0
	}
}

// Removed is a node a filter took out.
type Removed struct {
	Node   int32
	Filter Filter
	Reason string
}

// Candidate is a node that suits, with what its rank is made of.
type Candidate struct {
	Node         int32
	Score        float64 // larger is better: free resources per task
	ServiceTasks int
	Tasks        int
	Failures     int
}

// Explanation is the whole pipeline's answer for a service's next task.
type Explanation struct {
	Removed    []Removed
	Candidates []Candidate // best first
	Summary    string
}

// Explain runs every filter on every node and ranks what is left.
func (e *Engine) Explain(r *Request, have, failures []Count) Explanation {
	var x Explanation
	var counts [Suits + 1]int
	fails, lacking := map[int32]int{}, map[string]bool{}
	for _, c := range failures {
		if c.N >= FailureLimit {
			fails[c.Node] = int(c.N)
		}
	}
	e.each(r, have, func(i int32, f Filter) {
		counts[f]++
		e.noteLack(lacking, i, r, f)
		if f != Suits {
			x.Removed = append(x.Removed, Removed{Node: i, Filter: f, Reason: e.reason(r, i, f)})
			return
		}
		h := &e.hot[i]
		c := Candidate{Node: i, ServiceTasks: int(e.have[i]), Tasks: int(h.tasks), Failures: fails[i]}
		if c.ServiceTasks == 0 {
			c.Score = float64(h.weight) / float64(h.tasks+1)
		} else {
			c.Score = float64(h.weight) / float64(c.ServiceTasks+1)
		}
		x.Candidates = append(x.Candidates, c)
	})
	slices.SortStableFunc(x.Candidates, func(a, b Candidate) int {
		switch {
		case a.Failures != b.Failures:
			return a.Failures - b.Failures
		case (a.ServiceTasks == 0) != (b.ServiceTasks == 0):
			return b2i(a.ServiceTasks > 0) - b2i(b.ServiceTasks > 0)
		case a.Score > b.Score:
			return -1
		case a.Score < b.Score:
			return 1
		}
		return 0
	})
	slices.SortStableFunc(x.Removed, func(a, b Removed) int { return int(a.Filter) - int(b.Filter) })
	if counts[Suits] == 0 {
		x.Summary = summary(counts, lacking)
	} else {
		x.Summary = fmt.Sprintf("%d of %d nodes suit", counts[Suits], len(e.nodes))
	}
	return x
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// reason says in words what the node lacks.
func (e *Engine) reason(r *Request, i int32, f Filter) string {
	n, h := &e.nodes[i], &e.hot[i]
	switch f {
	case Ready:
		return "not ready, paused or drained"
	case Resources:
		switch {
		case h.max > 0 && h.held >= h.max:
			return fmt.Sprintf("holds %d tasks, its limit", h.held)
		case r.CPU > h.cpu:
			return fmt.Sprintf("needs %.3g CPUs, %.3g of %.3g free", float64(r.CPU)/1e9, float64(h.cpu)/1e9, float64(n.CPU)/1e9)
		case r.Memory > h.mem:
			return fmt.Sprintf("needs %s of memory, %s of %s free", mib(r.Memory), mib(h.mem), mib(n.Memory))
		}
		if want, free := e.genericShort(i, r); want != nil {
			return fmt.Sprintf("needs %d of generic resource %s, %d free", want.Value, want.Kind, free)
		}
	case Plugins:
		if p := lacks(n, r); p != nil {
			return "has no " + p.String()
		}
	case Constraints:
		for _, k := range e.compile(r.Constraints) {
			if k.bad || !k.c.Match(&n.Node) {
				return "constraint " + k.c.String()
			}
		}
	case Platforms:
		return fmt.Sprintf("is %s/%s", n.OS, n.Arch)
	case HostPorts:
		if k := e.portTaken(i, r); k >= 0 {
			return "host-mode port " + r.Ports[k].String() + " already in use"
		}
	case MaxReplicas:
		return fmt.Sprintf("already runs %d", e.have[i])
	}
	return f.Text(1)
}

func mib(b int64) string {
	if b >= 1<<30 {
		return fmt.Sprintf("%.4gGiB", float64(b)/(1<<30))
	}
	return fmt.Sprintf("%.4gMiB", float64(b)/(1<<20))
}

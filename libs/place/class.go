package place

import (
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"

	"skep.dev/libs/constraint"
)

// class is the nodes that suit every request of one kind, in a heap by load. Nodes that can never suit again
// (a port taken, less free than the kind's smallest reservation) leave it for good.
type class struct {
	key     Request // what defines it; CPU and Memory are the bucket's lower bounds
	heap    []uint64
	next    *class // same hash
	members []int32
}

// bucket is the largest power of two not above v: one class serves reservations within a factor of two.
func bucket(v int64) int64 {
	if v <= 0 {
		return 0
	}
	return 1 << (63 - bits.LeadingZeros64(uint64(v)))
}

func (e *Engine) hash(r *Request) uint64 {
	var x uint64
	mix := func(v uint64) { x = bits.RotateLeft64((x^v)*0x9e3779b97f4a7c15, 29) }
	str := func(s string) { mix(maphash.String(e.seed, s)) }
	for _, c := range r.Constraints {
		str(c)
	}
	for i := range r.Platforms {
		str(r.Platforms[i].OS)
		str(r.Platforms[i].Arch)
	}
	for i := range r.Plugins {
		str(r.Plugins[i].Type)
		str(r.Plugins[i].Name)
	}
	for i := range r.Generic {
		str(r.Generic[i].Kind)
		mix(uint64(r.Generic[i].Value))
	}
	for _, p := range r.Ports {
		mix(uint64(p.number))
		str(p.at)
	}
	mix(uint64(bucket(r.CPU)))
	mix(uint64(bucket(r.Memory)))
	return x
}

func (c *class) is(r *Request) bool {
	return bucket(r.CPU) == c.key.CPU && bucket(r.Memory) == c.key.Memory &&
		slices.Equal(r.Constraints, c.key.Constraints) && slices.Equal(r.Platforms, c.key.Platforms) &&
		slices.Equal(r.Plugins, c.key.Plugins) && slices.Equal(r.Ports, c.key.Ports) &&
		slices.EqualFunc(r.Generic, c.key.Generic, func(a, b Generic) bool { return a.Kind == b.Kind && a.Value == b.Value })
}

// class finds or makes the class of r.
func (e *Engine) class(r *Request) *class {
	h := e.hash(r)
	for c := e.classes[h]; c != nil; c = c.next {
		if c.is(r) {
			return c
		}
	}
	c := &class{key: *r, next: e.classes[h]}
	c.key.CPU, c.key.Memory, c.key.MaxPerNode, c.key.Spread = bucket(r.CPU), bucket(r.Memory), 0, nil
	cs := e.compile(r.Constraints)
	for i := range e.nodes {
		n := &e.nodes[i]
		if n.Ready && pluginsOK(n, r) && matches(cs, n) && r.RunsOn(&n.Node) {
			c.members = append(c.members, int32(i))
			if e.portsFree(int32(i), r) {
				c.heap = append(c.heap, e.keys[i])
			}
		}
	}
	heapify(c.heap)
	e.classes[h] = c
	return c
}

func (e *Engine) compile(exprs []string) []*compiled {
	out := make([]*compiled, 0, len(exprs))
	for _, s := range exprs {
		k := e.parsed[s]
		if k == nil {
			k = &compiled{}
			if cs, err := constraint.Parse([]string{s}); err != nil {
				k.bad = true // state refuses these; one that got through matches nothing
			} else {
				k.c = cs[0]
			}
			e.parsed[s] = k
		}
		out = append(out, k)
	}
	return out
}

func matches(cs []*compiled, n *Node) bool {
	for _, k := range cs {
		if k.bad || !k.c.Match(&n.Node) {
			return false
		}
	}
	return true
}

// pluginsOK: a node that lists no plugin of a type does not tell, and passes.
func pluginsOK(n *Node, r *Request) bool { return lacks(n, r) == nil }

// lacks is the first plugin that a node has not, nil when it has all.
func lacks(n *Node, r *Request) *Plugin {
	for i := range r.Plugins {
		want, known, has := &r.Plugins[i], false, false
		for k := range n.Plugins {
			p := &n.Plugins[k]
			if !strings.EqualFold(p.Type, want.Type) {
				continue
			}
			known = true
			has = has || strings.TrimSuffix(p.Name, ":latest") == strings.TrimSuffix(want.Name, ":latest")
		}
		if known && !has || !known && !strings.EqualFold(want.Type, "Log") {
			return want
		}
	}
	return nil
}

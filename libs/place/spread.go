package place

import (
	"slices"
	"strings"
)

type treeKey struct {
	class  *class
	spread string
}

// tree groups a class's nodes by the values of the preferences' labels. Its leaves are classes of their own.
type tree struct {
	root   *branch
	leafOf map[int32]*branch
	leaves []*branch
}

type branch struct {
	value    string
	parent   *branch
	children []*branch
	leaf     *class // set at the lowest level

	// Per batch:
	count   int32
	spent   bool
	picker  picker
	started bool
}

func (e *Engine) tree(c *class, spread []string) *tree {
	k := treeKey{c, strings.Join(spread, "\x00")}
	if t := e.trees[k]; t != nil {
		return t
	}
	t := &tree{root: &branch{}, leafOf: map[int32]*branch{}}
	for _, i := range c.members {
		b := t.root
		for _, d := range spread {
			v, ok := labelValue(&e.nodes[i], d)
			if !ok {
				continue
			}
			b = b.child(v)
		}
		if b.leaf == nil {
			b.leaf = &class{key: c.key}
			t.leaves = append(t.leaves, b)
		}
		b.leaf.members = append(b.leaf.members, i)
		if e.portsFree(i, &c.key) {
			b.leaf.heap = append(b.leaf.heap, e.keys[i])
		}
		t.leafOf[i] = b
	}
	for _, b := range t.leaves {
		heapify(b.leaf.heap)
	}
	e.trees[k] = t
	return t
}

func (b *branch) child(value string) *branch {
	at, ok := slices.BinarySearchFunc(b.children, value, func(c *branch, v string) int { return strings.Compare(c.value, v) })
	if !ok {
		b.children = slices.Insert(b.children, at, &branch{value: value, parent: b})
	}
	return b.children[at]
}

// labelValue of a preference's descriptor; descriptors that are no labels are ignored, a missing label is "".
func labelValue(n *Node, descriptor string) (string, bool) {
	const node, engine = "node.labels.", "engine.labels."
	switch {
	case len(descriptor) > len(node) && strings.EqualFold(descriptor[:len(node)], node):
		return n.Labels[descriptor[len(node):]], true
	case len(descriptor) > len(engine) && strings.EqualFold(descriptor[:len(engine)], engine):
		return n.EngineLabels[descriptor[len(engine):]], true
	}
	return "", false
}

func (e *Engine) placeSpread(dst []Placement, r *Request, c *class, n int, have []Count) []Placement {
	t := e.tree(c, r.Spread)
	start := len(dst)
	for _, h := range have {
		for b := t.leafOf[h.Node]; b != nil; b = b.parent {
			b.count += h.N
		}
	}
	for len(dst)-start < n && !t.root.spent {
		b := t.root
		for b.leaf == nil && !b.spent {
			b = b.lightest()
		}
		if b.spent {
			continue
		}
		if !b.started {
			b.started = true
			b.picker = picker{e: e, c: b.leaf, r: r}
		}
		i := b.picker.next()
		if i < 0 {
			b.spend()
			continue
		}
		dst = append(dst, Placement{Node: i, Assigned: e.take(i, r)})
		for ; b != nil; b = b.parent {
			b.count++
		}
	}
	t.reset()
	return dst
}

// lightest is the child with the fewest tasks; b itself, spent, when no child can take any.
func (b *branch) lightest() *branch {
	var best *branch
	for _, c := range b.children {
		if c.spent {
			continue
		}
		if best == nil || c.count < best.count || c.count == best.count && c.load() < best.load() {
			best = c
		}
	}
	if best == nil {
		b.spent = true
		return b
	}
	return best
}

// load breaks ties between branches of equal count: the lowest load in sight.
func (b *branch) load() uint64 {
	if b.leaf != nil && len(b.leaf.heap) > 0 {
		return b.leaf.heap[0]
	}
	return 0
}

func (b *branch) spend() {
	for ; b != nil; b = b.parent {
		for _, c := range b.children {
			if !c.spent {
				return
			}
		}
		b.spent = true
	}
}

func (t *tree) reset() {
	for _, b := range t.leaves {
		if b.started {
			b.picker.done()
			b.picker, b.started = picker{}, false
		}
		for ; b != nil; b = b.parent {
			b.count, b.spent = 0, false
		}
	}
	t.root.count, t.root.spent = 0, false
}

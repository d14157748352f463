package place

// picker yields nodes of one class, best first, for the tasks of one batch.
type picker struct {
	e      *Engine
	c      *class
	r      *Request
	aside  []int32  // taken out of the class's heap for this batch only
	second []ranked // once every node has a task of the service
	ranked bool
}

// next returns the best node, -1 when none suits. The caller must take it before it asks again.
func (p *picker) next() int32 {
	e, c := p.e, p.c
	for len(c.heap) > 0 {
		top := c.heap[0]
		i := int32(uint32(top))
		if k := e.keys[i]; k != top {
			c.heap[0] = k
			siftDown(c.heap, 0)
			continue
		}
		switch {
		case p.gone(i):
			c.heap = pop(c.heap)
		case e.have[i] > 0 || e.fails[i] > 0 || !e.room(i, p.r):
			c.heap = pop(c.heap)
			p.aside = append(p.aside, i)
		default:
			return i
		}
	}
	return p.nextRanked()
}

// gone: no request of this class will ever fit node i again.
func (p *picker) gone(i int32) bool {
	h, k := &p.e.hot[i], &p.c.key
	return (k.CPU > 0 && h.cpu < k.CPU) || (k.Memory > 0 && h.mem < k.Memory) || (h.max > 0 && h.held >= h.max) ||
		(len(k.Ports) > 0 && !p.e.portsFree(i, p.r))
}

func (p *picker) nextRanked() int32 {
	e := p.e
	if !p.ranked {
		p.ranked = true
		p.second = e.full[:0]
		for _, i := range p.aside {
			p.second = append(p.second, e.rank(i))
		}
		for i := (len(p.second) - 2) / 4; i >= 0 && len(p.second) > 1; i-- {
			siftRanked(p.second, i)
		}
		e.full = nil // in use until done
	}
	for len(p.second) > 0 {
		i := int32(uint32(p.second[0].key))
		if now := e.rank(i); now != p.second[0] {
			p.second[0] = now
			siftRanked(p.second, 0)
			continue
		}
		if p.r.MaxPerNode > 0 && int(e.have[i]) >= p.r.MaxPerNode || !e.room(i, p.r) || !e.portsFree(i, p.r) {
			last := len(p.second) - 1
			p.second[0] = p.second[last]
			p.second = p.second[:last]
			if last > 0 {
				siftRanked(p.second, 0)
			}
			continue
		}
		return i
	}
	return -1
}

func (e *Engine) rank(i int32) ranked {
	return ranked{fails: e.fails[i], share: float32(e.have[i]+1) / e.hot[i].weight, key: e.keys[i]}
}

// done puts the nodes that were set aside back.
func (p *picker) done() {
	c, e := p.c, p.e
	if p.ranked && e.full == nil {
		e.full = p.second[:0]
	}
	if len(p.aside) > len(c.heap)/4 {
		for _, i := range p.aside {
			c.heap = append(c.heap, e.keys[i])
		}
		heapify(c.heap)
	} else {
		for _, i := range p.aside {
			c.heap = push(c.heap, e.keys[i])
		}
	}
}

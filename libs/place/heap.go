package place

// Heaps are 4-ary: fewer levels, and the four children share a cache line.

func siftDown(h []uint64, i int) {
	n := len(h)
	v := h[i]
	for {
		c := 4*i + 1
		if c >= n {
			break
		}
		best, bv := c, h[c]
		for k := c + 1; k < min(c+4, n); k++ {
			if h[k] < bv {
				best, bv = k, h[k]
			}
		}
		if bv >= v {
			break
		}
		h[i] = bv
		i = best
	}
	h[i] = v
}

func heapify(h []uint64) {
	for i := (len(h) - 2) / 4; i >= 0 && len(h) > 1; i-- {
		siftDown(h, i)
	}
}

func pop(h []uint64) []uint64 {
	last := len(h) - 1
	h[0] = h[last]
	h = h[:last]
	if last > 0 {
		siftDown(h, 0)
	}
	return h
}

func push(h []uint64, v uint64) []uint64 {
	h = append(h, v)
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 4
		if h[p] <= v {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = v
	return h
}

// ranked orders nodes that run the service already, or fail it.
type ranked struct {
	fails int32
	share float32 // (tasks of the service + 1) / weight
	key   uint64  // ties: overall load, then index
}

func (a *ranked) less(b *ranked) bool {
	if a.fails != b.fails {
		return a.fails < b.fails
	}
	if a.share != b.share {
		return a.share < b.share
	}
	return a.key < b.key
}

func siftRanked(h []ranked, i int) {
	n := len(h)
	v := h[i]
	for {
		c := 4*i + 1
		if c >= n {
			break
		}
		best := c
		for k := c + 1; k < min(c+4, n); k++ {
			if h[k].less(&h[best]) {
				best = k
			}
		}
		if !h[best].less(&v) {
			break
		}
		h[i] = h[best]
		i = best
	}
	h[i] = v
}

package mesh

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"skep.dev/libs/ipam"
)

// restFor is how long an address of a network is not given out again while others are free: names, connections and
// neighbour tables elsewhere still know its last holder.
const restFor = 30 * time.Second

// blocks hands out addresses of one network from the blocks leased to this node.
type blocks struct {
	mu       sync.Mutex
	layout   ipam.Layout
	have     []netip.Prefix
	used     map[netip.Addr]string // task
	released map[netip.Addr]time.Time
	last     netip.Addr
	now      func() time.Time
	// reserved are the addresses of blocks that are a service's, as far as it is known now; nil: none are. It is called
	// under mu, so that what holder was told is not given out after it.
	reserved func() []string
}

func newBlocks(l ipam.Layout) *blocks {
	return &blocks{layout: l, used: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}, now: time.Now}
}

// set says which blocks the node holds now. Addresses in use outside them stay with their tasks.
func (b *blocks) set(have []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.have = slices.Clone(have)
}

// claim marks an address that a record or a service names as its task's, and says whose it is now.
func (b *blocks) claim(a netip.Addr, task string) (holder string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if holder, ok := b.used[a]; ok {
		return holder
	}
	b.used[a] = task
	return task
}

// holder is the task that has an address, "" if none has.
func (b *blocks) holder(a netip.Addr) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used[a]
}

// kept are the addresses no task gets by chance.
func (b *blocks) kept() map[netip.Addr]bool {
	if b.reserved == nil {
		return nil
	}
	out := map[netip.Addr]bool{}
	for _, text := range b.reserved() {
		if a := address(text); a.Is4() {
			out[a] = true
		}
	}
	return out
}

// take gives a task the next address after the last one given that is free and has rested; without such a one, and
// with hurry, the one that rested longest. false when another block is needed.
func (b *blocks) take(task string, hurry bool) (netip.Addr, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var first, after, oldest netip.Addr
	now, kept := b.now(), b.kept()
	for _, block := range b.have {
		for a := range b.layout.Hosts(block) {
			if _, used := b.used[a]; used || kept[a] {
				continue
			}
			if since, rests := b.released[a]; rests && now.Sub(since) < restFor {
				if !oldest.IsValid() || since.Before(b.released[oldest]) {
					oldest = a
				}
				continue
			}
			if !first.IsValid() {
				first = a
			}
			if !after.IsValid() && b.last.IsValid() && b.last.Less(a) {
				after = a
			}
		}
	}
	a := after
	if !a.IsValid() {
		a = first
	}
	if !a.IsValid() && hurry {
		a = oldest
	}
	if !a.IsValid() {
		return a, false
	}
	delete(b.released, a)
	b.used[a], b.last = task, a
	return a, true
}

// release lets an address rest, if the task holds it.
func (b *blocks) release(a netip.Addr, task string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used[a] == task {
		delete(b.used, a)
		b.released[a] = b.now()
	}
}

// spare counts the addresses that could be given out now.
func (b *blocks) spare() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, now, kept := 0, b.now(), b.kept()
	for _, block := range b.have {
		for a := range b.layout.Hosts(block) {
			if _, used := b.used[a]; !used && !kept[a] && now.Sub(b.released[a]) >= restFor {
				n++
			}
		}
	}
	return n
}

// idle are the blocks of which no address is in use.
func (b *blocks) idle() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.have), func(p netip.Prefix) bool {
		for a := range b.used {
			if p.Contains(a) {
				return true
			}
		}
		return false
	})
}

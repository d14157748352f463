package mesh

import (
	"net/netip"
	"sync"
	"time"

	"skep.dev/libs/fault"
)

// quarantine is how long a released address is not given out again while others are free: peers' neighbour and
// connection tables still know its last holder.
const quarantine = time.Minute

// pool hands out the node subnet's addresses, one after the other, so that a released one rests the longest.
type pool struct {
	subnet      netip.Prefix
	first, last netip.Addr

	mu       sync.Mutex
	used     map[netip.Addr]string // task
	released map[netip.Addr]time.Time
	cursor   netip.Addr // the last one given out
	now      func() time.Time
}

func newPool(subnet netip.Prefix, gateway netip.Addr) *pool {
	b := subnet.Addr().As4()
	host := uint32(1)<<(32-subnet.Bits()) - 2 // without the broadcast address
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) + host
	return &pool{
		subnet: subnet, first: gateway.Next(), last: netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}),
		used: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}, cursor: gateway, now: time.Now,
	}
}

// claim marks an address a record names as used; false when it is not the pool's or has another holder.
func (p *pool) claim(a netip.Addr, task string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.Less(p.first) || p.last.Less(a) {
		return false
	}
	if holder, ok := p.used[a]; ok {
		return holder == task
	}
	p.used[a] = task
	return true
}

// startAfter continues where an earlier process left off.
func (p *pool) startAfter(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !a.Less(p.first) && !p.last.Less(a) {
		p.cursor = a
	}
}

// take gives out the next free address that is not resting, else the one that rested longest.
func (p *pool) take(task string) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, oldest := p.now(), netip.Addr{}
	a := p.cursor
	for {
		if a = a.Next(); p.last.Less(a) || a.Less(p.first) {
			a = p.first
		}
		if _, used := p.used[a]; !used {
			since, resting := p.released[a]
			if !resting || now.Sub(since) >= quarantine {
				return p.giveLocked(a, task), nil
			}
			if !oldest.IsValid() || since.Before(p.released[oldest]) {
				oldest = a
			}
		}
		if a == p.cursor || (!p.cursorInside() && a == p.last) {
			break
		}
	}
	if oldest.IsValid() {
		return p.giveLocked(oldest, task), nil
	}
	return netip.Addr{}, fault.Exhausted("all %d task addresses of this node's subnet %s are in use: stop tasks here or add nodes", len(p.used), p.subnet)
}

func (p *pool) cursorInside() bool { return !p.cursor.Less(p.first) && !p.last.Less(p.cursor) }

func (p *pool) giveLocked(a netip.Addr, task string) netip.Addr {
	delete(p.released, a)
	p.used[a] = task
	p.cursor = a
	return a
}

// release lets an address rest, if the task holds it.
func (p *pool) release(a netip.Addr, task string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[a] == task {
		delete(p.used, a)
		p.released[a] = p.now()
	}
}

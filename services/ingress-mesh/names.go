package mesh

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"skep.dev/services/ingress-mesh/internal/dns"
	"skep.dev/services/ingress-mesh/internal/vip"
)

// tables hold what is to be answered and translated on each network; a set of networks shares one table of names among
// all tasks that are on just those.
type tables struct {
	mu       sync.RWMutex
	networks map[string]dns.Network
	vips     map[string][]vip.Service
	merged   map[string]*dns.Table // by the networks' ids, joined
}

func newTables() *tables {
	return &tables{networks: map[string]dns.Network{}, vips: map[string][]vip.Service{}, merged: map[string]*dns.Table{}}
}

func (t *tables) setVirtual(id string, v []vip.Service) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.vips[id] = v
}

func (t *tables) setNames(id string, n dns.Network) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.networks[id] = n
	t.staleLocked(id)
}

func (t *tables) drop(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.networks, id)
	delete(t.vips, id)
	t.staleLocked(id)
}

func (t *tables) staleLocked(id string) {
	for k := range t.merged {
		if slices.Contains(strings.Split(k, " "), id) {
			delete(t.merged, k)
		}
	}
}

// virtual are the virtual addresses of a task's networks.
func (t *tables) virtual(networks []string) []vip.Service {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []vip.Service
	for _, id := range networks {
		out = append(out, t.vips[id]...)
	}
	return out
}

// of is the table of names of a set of networks.
func (t *tables) of(key string) *dns.Table {
	t.mu.RLock()
	m := t.merged[key]
	t.mu.RUnlock()
	if m != nil {
		return m
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.merged[key]; m != nil {
		return m
	}
	var list []dns.Network
	for id := range strings.SplitSeq(key, " ") {
		if n, ok := t.networks[id]; ok {
			list = append(list, n)
		}
	}
	m = dns.NewTable(list)
	t.merged[key] = m
	return m
}

// zone answers for the tasks on one set of networks; it looks its table up at each question, so that a change is seen by
// the next one.
type zone struct {
	t   *tables
	key string
}

func newZone(t *tables, networks []string) zone {
	ids := slices.Clone(networks)
	slices.Sort(ids)
	return zone{t, strings.Join(ids, " ")}
}

func (z zone) A(name string) ([]netip.Addr, bool) { return z.t.of(z.key).A(name) }
func (z zone) PTR(a netip.Addr) (string, bool)    { return z.t.of(z.key).PTR(a) }
func (z zone) Owns(a netip.Addr) bool             { return z.t.of(z.key).Owns(a) }
func (z zone) Holds(name string) bool             { return z.t.of(z.key).Holds(name) }

var (
	_ dns.Zone   = zone{}
	_ dns.Holder = zone{}
)

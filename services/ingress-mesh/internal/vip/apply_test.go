package vip

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// many is n services of three tasks each.
func many(n int) []Service {
	out := make([]Service, 0, n)
	for i := range n {
		s := Service{VIP: v4(20000 + i), VIP6: v6(20000 + i), Service: fmt.Sprintf("service%018d", i)}
		for j := range 3 {
			s.Backends, s.Backends6 = append(s.Backends, v4(3*i+j)), append(s.Backends6, v6(3*i+j))
		}
		out = append(out, s)
	}
	return out
}

func check(t rapid.TB, path string, want []Service) {
	t.Helper()
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, g := range got {
		have[g.Service.Service] = fmt.Sprint(g.VIP, g.VIP6, g.Backends, g.Backends6)
	}
	exp := map[string]string{}
	for _, s := range want {
		sorted := func(l []netip.Addr) []netip.Addr {
			l = slices.Clone(l)
			slices.SortFunc(l, netip.Addr.Compare)
			return slices.Compact(l)
		}
		exp[s.Service] = fmt.Sprint(s.VIP, s.VIP6, sorted(s.Backends), sorted(s.Backends6))
	}
	if !maps.Equal(have, exp) {
		t.Fatalf("the kernel has\n%v\nnot\n%v", have, exp)
	}
}

func TestOnlyDifferences(t *testing.T) {
	path := newSpace(t)
	want := many(500)
	steps := []struct {
		name   string
		change func()
		writes uint32
	}{
		{"the first time", func() {}, 1},
		{"unchanged", func() {}, 0},
		{"in another order", func() { slices.Reverse(want); slices.Reverse(want[7].Backends) }, 0},
		{"another task", func() { want[3].Backends = []netip.Addr{v4(3), v4(4), v4(999)} }, 1},
		{"no task: what was drawn among goes last", func() { want[4].Backends, want[4].Backends6 = nil, nil }, 2},
		{"a task more, a number that was not there: its chain first", func() { want[5].Backends = append(want[5].Backends, v4(998)) }, 2},
		{"a service less: its tasks go last", func() { want = want[:499] }, 2},
		{"none: tasks and chains go last", func() { want = nil }, 2},
		{"still none", func() {}, 0},
	}
	c := new(Cache)
	for _, s := range steps {
		s.change()
		before := generation(t, path)
		for i, apply := range []func(string, []Service) error{c.Apply, c.Apply, Apply} {
			if err := apply(path, want); err != nil {
				t.Fatal(s.name, i, err)
			}
		}
		if n := generation(t, path) - before; n != s.writes {
			t.Errorf("%s: %d transactions", s.name, n)
		}
		check(t, path, want)
	}
	if out := mustNft(t, path, "list table inet "+tableName); strings.Contains(out, "pick-") {
		t.Error("chains that nothing uses are left", out)
	}
}

func mustNft(t testing.TB, path, args string) string {
	t.Helper()
	h := &host{t: t, path: path}
	return h.sh("nft " + args)
}

func TestHealsWhatOthersDid(t *testing.T) {
	path, c := newSpace(t), new(Cache)
	want := []Service{service(0), service(1)}
	want[1].Backends, want[1].Backends6 = []netip.Addr{v4(1), v4(2)}, []netip.Addr{v6(1)}
	mustNft(t, path, "'add table inet theirs { chain c { type filter hook output priority 0; }; }'")
	if err := c.Apply(path, want); err != nil {
		t.Fatal(err)
	}
	sound := rulesOf(t, path)
	for _, script := range []string{
		"delete table inet skep_vip",
		"flush table inet skep_vip",
		"flush chain inet skep_vip translate",
		"flush chain inet skep_vip pick-2",
		"insert rule inet skep_vip translate accept",
		"add rule inet skep_vip pick-2 accept",
		"delete element inet skep_vip services { 10.1.0.201 }",
		"delete element inet skep_vip addresses6 { fd00:1::c8 }",
		"flush map inet skep_vip backends",
		"add element inet skep_vip addresses { 10.9.9.9 }",
		"add chain inet skep_vip mine",
		"add set inet skep_vip mine { type ipv4_addr; }",
		"add table inet skep_vip { flags dormant; }",
		"flush chain inet skep_vip guard; delete chain inet skep_vip guard",
		"flush chain inet skep_vip guard; delete chain inet skep_vip guard; add chain inet skep_vip guard { type filter hook output priority 5; }",
	} {
		for name, apply := range map[string]func(string, []Service) error{"cache": c.Apply, "no cache": Apply} {
			mustNft(t, path, "'"+script+"'")
			if got := rulesOf(t, path); got == sound {
				t.Errorf("%s changed nothing", script)
			}
			if err := apply(path, want); err != nil {
				t.Fatalf("%s: %s: %v", name, script, err)
			}
			if got := rulesOf(t, path); got != sound {
				t.Errorf("%s: after %s:\n%s\nnot\n%s", name, script, got, sound)
			}
		}
	}
	mustNft(t, path, "flush ruleset")
	if err := c.Apply(path, want); err != nil {
		t.Fatal(err)
	}
	check(t, path, want)
}

// rulesOf is the ruleset without what changes by itself.
func rulesOf(t testing.TB, path string) string {
	t.Helper()
	lines := strings.Split(mustNft(t, path, "list ruleset"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestCacheKnowsANamespaceThatWasMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { _ = nsfs.Remove(path) })
	c := new(Cache)
	for range 3 {
		ns, h, err := nsfs.Make(path)
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		_ = ns.Close()
		if err := c.Apply(path, many(2)); err != nil {
			t.Fatal(err)
		}
		check(t, path, many(2))
		if err := nsfs.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Apply(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	c.Forget(path)
	c.Forget(path)
	if len(c.spaces)+len(c.layouts) != 0 {
		t.Error("remembers", c.spaces, c.layouts)
	}
}

func TestCacheSharesWhatNamespacesHaveInCommon(t *testing.T) {
	c := new(Cache)
	var paths []string
	var wg sync.WaitGroup
	for range 8 {
		path := newSpace(t)
		paths = append(paths, path)
		wg.Go(func() {
			for i := range 5 {
				if err := c.Apply(path, many(10+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(c.layouts) != 1 || c.layouts[digest(many(14))].refs != 8 {
		t.Errorf("%d layouts", len(c.layouts))
	}
	for _, p := range paths {
		check(t, p, many(14))
		c.Forget(p)
	}
	if len(c.layouts) != 0 {
		t.Error("layouts of nobody are kept")
	}
}

func TestReadNothing(t *testing.T) {
	path := newSpace(t)
	if got, err := Read(path); err != nil || got != nil {
		t.Error(got, err)
	}
	for _, err := range []error{
		Apply(path+"x", nil), Clear(path+"x", []netip.Addr{v4(1)}, nil),
		func() error { _, err := Read(path + "x"); return err }(),
	} {
		if !os.IsNotExist(err) && !strings.Contains(fmt.Sprint(err), path+"x") {
			t.Error(err)
		}
	}
}

func TestOfTwoServicesWithOneAddressTheFirstHasIt(t *testing.T) {
	a, b := service(0), service(1)
	b.VIP, b.Backends = a.VIP, []netip.Addr{v4(9)}
	l := newLayout([]Service{a, b})
	if e := l.sets["addresses"][string(a.VIP.AsSlice())]; e.comment != "svc0" || len(l.sets["services"]) != 0 {
		t.Error(l.sets)
	}
}

func services(t *rapid.T) []Service {
	n := rapid.IntRange(0, 6).Draw(t, "services")
	out := make([]Service, 0, n)
	for i := range n {
		s := Service{VIP: v4(200 + i), Service: fmt.Sprintf("svc%d", i)}
		for range rapid.IntRange(0, 5).Draw(t, "tasks") {
			s.Backends = append(s.Backends, v4(rapid.IntRange(1, 6).Draw(t, "task")))
		}
		if rapid.Bool().Draw(t, "six") {
			s.VIP6 = v6(200 + i)
			for range rapid.IntRange(0, 3).Draw(t, "tasks6") {
				s.Backends6 = append(s.Backends6, v6(rapid.IntRange(1, 6).Draw(t, "task6")))
			}
		}
		out = append(out, s)
	}
	return out
}

// Whatever was there leads to what is wanted, and from there no way leads on. At every step between, what a service leads
// to is there: its chain, and each number that this one draws; and what a packet may have drawn before the turn is there
// after it.
func TestDifferenceLeadsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := newLayout(services(t)), newLayout(services(t))
		d := difference(from, to)
		got, chains := map[string]elements{}, maps.Clone(from.chains)
		for set, e := range from.sets {
			got[set] = maps.Clone(e)
		}
		remove := func(keys map[string][]string) {
			for set, list := range keys {
				for _, k := range list {
					if _, ok := got[set][k]; !ok {
						t.Fatal("removes what is not there")
					}
					delete(got[set], k)
				}
			}
		}
		add := func(keys map[string][]string) {
			for set, list := range keys {
				for _, k := range list {
					if _, ok := got[set][k]; ok {
						t.Fatal("adds what is there")
					}
					got[set][k] = to.sets[set][k]
				}
			}
		}
		there := func(l map[string]elements) {
			for _, f := range families {
				for v, e := range l[f.services] {
					if !chains[e.val] {
						t.Fatal("no chain", e.val)
					}
					for n := uint32(0); f.pick(n) != e.val; n++ {
						if _, ok := got[f.backends][v+string(native(n))]; !ok {
							t.Fatal("nothing has number", n, "of", e.val)
						}
					}
				}
			}
		}
		for _, c := range d.chains {
			chains[c.name] = true
		}
		add(d.lay)
		there(from.sets)
		remove(d.remove)
		add(d.add)
		there(from.sets)
		there(to.sets)
		remove(d.sweep)
		for _, name := range d.unused {
			delete(chains, name)
		}
		there(to.sets)
		for set := range to.sets {
			if !maps.Equal(got[set], to.sets[set]) {
				t.Fatal(set, got[set], to.sets[set])
			}
		}
		if difference(to, to).writing || difference(to, newLayout(nil)).writing != (len(to.sets["addresses"]) > 0) {
			t.Fatal("writing")
		}
	})
}

func TestKernelHasWhatWasWanted(t *testing.T) {
	path, c := newSpace(t), new(Cache)
	rapid.Check(t, func(t *rapid.T) {
		if rapid.IntRange(0, 9).Draw(t, "flush") == 0 {
			k, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			k.nft.FlushRuleset()
			if err := k.nft.Flush(); err != nil {
				t.Fatal(err)
			}
			_ = k.close()
		}
		want := services(t)
		if err := c.Apply(path, want); err != nil {
			t.Fatal(err)
		}
		check(t, path, want)
	})
}

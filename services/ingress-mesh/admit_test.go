package mesh

import (
	"net/netip"
	"strings"
	"testing"

	"skep.dev/libs/id"
)

// A task's link is apart from other tasks' from the moment it is there, not once the mesh next looks at its ports.
func TestAttachedApart(t *testing.T) {
	r := newRig(t)
	r.start()
	for range 5 {
		task := id.New()
		r.attach(task)
		out := run(t, "bridge", "-d", "link", "show", "dev", vethName(task))
		if !strings.Contains(out, "isolated on") && !strings.Contains(out, "hairpin on") {
			t.Errorf("a port as it was made:\n%s", out)
		}
	}
}

// A task's link that somebody took off the bridge comes back apart from other tasks' too.
func TestRejoinedApart(t *testing.T) {
	r := newRig(t)
	r.start()
	task := id.New()
	r.attach(task)
	run(t, "ip", "link", "set", vethName(task), "nomaster")
	r.attach(task)
	out := run(t, "bridge", "-d", "link", "show", "dev", vethName(task))
	if !strings.Contains(out, "isolated on") && !strings.Contains(out, "hairpin on") {
		t.Errorf("a port as it came back:\n%s", out)
	}
}

// From the moment it is there a task is who it is, to the bridge and to the node, also when an earlier version, which
// wrote none of that, attached it; and when it is gone nothing of it is left.
func TestAttachedAsItself(t *testing.T) {
	r := newRig(t)
	r.start()
	one, two := id.New(), id.New()
	a, b := r.attach(one), r.attach(two)
	right := func(when string) {
		t.Helper()
		neighbours, table := run(t, "ip", "neigh", "show", "dev", Bridge)+run(t, "ip", "-6", "neigh", "show", "dev", Bridge), run(t, "nft", "list", "table", "bridge", "skep_ports")
		for task, at := range map[string][]netip.Prefix{one: a.Addresses, two: b.Addresses} {
			mac := macOf(at[0].Addr()).String()
			for _, p := range at {
				if !strings.Contains(neighbours, p.Addr().String()+" lladdr "+mac+" PERMANENT") {
					t.Errorf("%s: the node does not know for certain where %s is:\n%s", when, p.Addr(), neighbours)
				}
				if !strings.Contains(table, `"`+vethName(task)+`" . `+mac+" . "+p.Addr().String()) {
					t.Errorf("%s: task %s may not send as %s:\n%s", when, task, p.Addr(), table)
				}
			}
			if out := run(t, "bridge", "-d", "link", "show", "dev", vethName(task)); !strings.Contains(out, "learning off") || !strings.Contains(out, " flood off ") {
				t.Errorf("%s: its port learns or is flooded:\n%s", when, out)
			}
			if out := run(t, "bridge", "fdb", "show", "dev", vethName(task)); !strings.Contains(out, mac+" master "+Bridge+" static") {
				t.Errorf("%s: the bridge does not know it for certain:\n%s", when, out)
			}
		}
	}
	right("attached")
	r.stop()
	run(t, "nft", "delete", "table", "bridge", "skep_ports")
	run(t, "ip", "neigh", "flush", "dev", Bridge, "nud", "permanent")
	run(t, "ip", "-6", "neigh", "flush", "dev", Bridge, "nud", "permanent")
	for _, task := range []string{one, two} {
		run(t, "bridge", "link", "set", "dev", vethName(task), "learning", "on", "flood", "on")
		run(t, "sh", "-c", "bridge fdb del $(bridge fdb show dev "+vethName(task)+" | grep static | head -1 | cut -d' ' -f1) dev "+vethName(task)+" master")
	}
	r.start()
	right("after an upgrade")
	if err := r.s.Detach(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ip", "neigh", "show", "dev", Bridge) + run(t, "nft", "list", "table", "bridge", "skep_ports"); strings.Contains(out, b.Addresses[0].Addr().String()+" ") || strings.Contains(out, vethName(two)) {
		t.Errorf("left of a task that is gone:\n%s", out)
	}
}

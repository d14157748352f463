package derive

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestAudit(t *testing.T) {
	c := newCluster(t)
	for i := range 3 {
		c.node(fmt.Sprint("n", i+1), uint32(i+1))
	}
	c.network("net", "10.1.0.0/20")
	vip := &skepv1.Endpoint{VirtualIps: []*skepv1.VirtualIP{{NetworkId: "net", Addr: "10.1.15.1/20"}}, Ports: []*skepv1.PortConfig{{PublishedPort: 80}}}
	c.service("s", 1, vip, "net")
	c.hold("n1", "net", "10.1.0.0/28")
	c.one(1, running, running, 0)
	c.commit()
	if got := Audit(c.p.Evidence()); len(got) != 0 {
		t.Errorf("nothing is wrong, and it found %q", got)
	}
	put := func(key string, blocks []string, addrs ...string) {
		e := &skepv1.MeshEndpoints{Blocks: blocks}
		for i, a := range addrs {
			e.Endpoints = append(e.Endpoints, &skepv1.MeshEndpoint{TaskId: fmt.Sprint(key, i), Addr: a})
		}
		c.rev++
		c.must(c.p.PutStored(key, enc(t, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: e}}), c.rev))
	}
	c.service("u", 1, vip, "net")
	put("net.n2", []string{"10.1.0.8/29", "bad"}, "10.1.0.2", "10.1.0.9")
	put("net.n3", []string{"10.1.2.0/28", "10.1.15.0/28"}, "10.1.2.1", "10.1.15.1")
	put("ingress.n2", nil, "100.64.1.9", "100.64.2.5")
	want := []string{
		`network net: 10.1.0.2 is the address of task t1 and of task net.n20`,
		`network net: 10.1.15.1 is the address of service svc-s (s) and of service svc-u (u)`,
		`network net: 10.1.15.1 is the address of service svc-u (u) and of task net.n31`,
		`network net: address "10.1.0.2" of task net.n20 is in no block of node n2`,
		`network net: block "bad" of node n2 is no range of addresses`,
		`network net: block 10.1.0.0/28 of node n1 overlaps 10.1.0.8/29 of node n2`,
		`published ports: 100.64.1.9 is the address of task t1 and of task ingress.n20`,
		`published ports: address "100.64.1.9" of task ingress.n20 is not in the subnet of node n2`,
	}
	if got := Audit(c.p.Evidence()); !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// What differs from the reports counts only where nothing is about to be written.
	put("net.n1", []string{"10.1.0.0/28"}, "10.1.0.3")
	differs := []string{
		`network net: task t1 on node n1 has address 10.1.0.2 by its node's report, and its record says "": the node was not leased that address, or the task is not on the network`,
		`network net: task net.n10 is recorded with address 10.1.0.3 on node n1, which reports no such task`,
	}
	for _, settled := range []bool{false, true} {
		if settled {
			clear(c.p.dirtyNodes)
		}
		got := strings.Join(Audit(c.p.Evidence()), "\n")
		for _, want := range differs {
			if strings.Contains(got, want) != settled {
				t.Errorf("settled %v: %q in\n%s", settled, want, got)
			}
		}
	}
}

package derive

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// liars is a cluster of an honest node n1 and of w, which has one task t1 of service s on network net and says what it likes.
func liars(t testing.TB) *cluster {
	c := newCluster(t)
	c.node("n1", 1)
	c.node("w", 2)
	c.network("net", "10.1.0.0/20", "fd00::/64")
	c.network("other", "10.2.0.0/20")
	c.service("s", 1, &skepv1.Endpoint{
		VirtualIps: []*skepv1.VirtualIP{{NetworkId: "net", Addr: "10.1.15.1/20"}},
		Ports:      []*skepv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp"}},
	}, "net")
	c.hold("n1", "net", "10.1.0.0/28")
	c.hold("n1", "other", "10.2.0.0/28")
	c.hold("w", "net", "10.1.0.16/28")
	c.must(c.p.PutTasks("w", enc(t, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{{Id: "t1", ServiceId: "s", Revision: 1, Desired: running}}})))
	c.commit()
	return c
}

func (c *cluster) says(addresses []string, networks ...*skepv1.NetworkAddress) {
	c.must(c.p.PutStatus("w", enc(c.t, &skepv1.NodeStatus{Tasks: []*skepv1.TaskStatus{
		{TaskId: "t1", State: running, Addresses: addresses, Networks: networks},
		{TaskId: "nobodys", State: running, Addresses: []string{"100.64.2.7/24"}, Networks: []*skepv1.NetworkAddress{{NetworkId: "net", Addr: "10.1.0.18/20"}}},
	}})))
	c.commit()
}

// listed is where a node's tasks are by its record.
func (c *cluster) listed(key string) string {
	var out []string
	for _, e := range c.get(key).GetEndpoints().GetEndpoints() {
		out = append(out, strings.TrimSpace(e.TaskId+" "+e.Addr+" "+e.Addr6))
	}
	return strings.Join(out, ", ")
}

func TestANodeSpeaksForWhatItWasGiven(t *testing.T) {
	c := liars(t)
	on := func(network, addr, addr6 string) *skepv1.NetworkAddress {
		return &skepv1.NetworkAddress{NetworkId: network, Addr: addr, Addr6: addr6}
	}
	for name, tc := range map[string]struct {
		say  *skepv1.NetworkAddress
		want string
	}{
		"its own":                       {on("net", "10.1.0.17/20", ""), "t1 10.1.0.17"},
		"its own, with IPv6":            {on("net", "10.1.0.17/20", "fd00::a01:11/64"), "t1 10.1.0.17 fd00::a01:11"},
		"its own, with another's IPv6":  {on("net", "10.1.0.17/20", "fd00::a01:2/64"), "t1 10.1.0.17 fd00::a01:11"},
		"its own, with IPv6 of nowhere": {on("net", "10.1.0.17/20", "x"), "t1 10.1.0.17 fd00::a01:11"},
		"another node's":                {on("net", "10.1.0.2/20", ""), ""},
		"of a block nobody has":         {on("net", "10.1.0.33/20", ""), ""},
		"the gateway's":                 {on("net", "10.1.0.1/20", ""), ""},
		"the virtual one":               {on("net", "10.1.15.1/20", ""), ""},
		"the broadcast one":             {on("net", "10.1.15.255/20", ""), ""},
		"outside":                       {on("net", "192.0.2.1/20", ""), ""},
		"IPv6":                          {on("net", "fd00::a01:11/64", ""), ""},
		"IPv6 that says IPv4":           {on("net", "::ffff:10.1.0.17", ""), ""},
		"nothing":                       {on("net", "", ""), ""},
		"words":                         {on("net", "10.1.0.17.5", ""), ""},
		"a network it is not on":        {on("other", "10.2.0.2/20", ""), ""},
		"a network there is not":        {on("nowhere", "10.1.0.17/20", ""), ""},
		"the published ports' scope":    {on(keys.ScopeIngress, "100.64.2.5", ""), ""},
		"the nodes' scope":              {on(keys.ScopeNodes, "10.0.0.1", ""), ""},
	} {
		c.says(nil, tc.say)
		if got := c.listed("net.w"); got != tc.want {
			t.Errorf("%s: network net has %q, want %q", name, got, tc.want)
		}
		if got := c.listed("other.w") + c.listed("ingress.w") + c.listed("nowhere.w"); got != "" || c.get("node.w").GetNode() == nil {
			t.Errorf("%s: elsewhere is %q", name, got)
		}
	}
	// A block of a network that the task's revision is not on says nothing: the node got it for another task.
	c.hold("w", "other", "10.2.0.16/28")
	c.says(nil, on("other", "10.2.0.17/20", ""), on("net", "10.1.0.17/20", ""), on("net", "10.1.0.18/20", ""))
	if got := c.listed("other.w") + "|" + c.listed("net.w"); got != "|t1 10.1.0.17" {
		t.Errorf("on two networks: %q", got)
	}
	// The service goes, and its revisions with it: the way to a task that still ends stays, and leads to its node alone.
	c.must(c.p.PutSpec("service.s", nil))
	c.must(c.p.PutRevision("service.s.1", nil))
	c.commit()
	if got := c.listed("net.w"); got != "t1 10.1.0.17" {
		t.Errorf("a task whose service is gone: %q", got)
	}
	c.says(nil, on("net", "10.1.0.2/20", ""))
	if got := c.listed("net.w"); got != "" {
		t.Errorf("a task whose service is gone is at another node's address: %q", got)
	}
}

// The revision may come after the report, and say that the task is not on that network.
func TestARevisionComesAfterTheReport(t *testing.T) {
	c := liars(t)
	c.must(c.p.PutTasks("w", enc(t, &skepv1.NodeTasks{Tasks: []*skepv1.TaskRecord{{Id: "t1", ServiceId: "s", Revision: 2, Desired: running}}})))
	c.says(nil, &skepv1.NetworkAddress{NetworkId: "net", Addr: "10.1.0.17"})
	if got := c.listed("net.w"); got != "t1 10.1.0.17" {
		t.Errorf("before: %q", got)
	}
	c.service("s", 2, nil, "other")
	c.commit()
	if got := c.listed("net.w"); got != "" {
		t.Errorf("after: %q", got)
	}
}

func TestPublishedPortsLeadToTheNodesOwnTasks(t *testing.T) {
	c := liars(t) // n1 has 100.64.1.0/24, w has 100.64.2.0/24
	for say, want := range map[string]string{
		"100.64.2.5/24": "t1 100.64.2.5", "100.64.2.2": "t1 100.64.2.2", "100.64.2.254": "t1 100.64.2.254",
		"100.64.2.0": "", "100.64.2.1": "", "100.64.2.255": "", "100.64.1.1": "", "100.64.1.9": "", "10.0.0.1": "", "127.0.0.1": "", "fd94:4a0:dd4d::6440:205": "", "::ffff:100.64.2.5": "", "": "", "x": "",
	} {
		c.says([]string{say})
		if got := c.listed("ingress.w"); got != want {
			t.Errorf("it says %q: published ports lead to %q, want %q", say, got, want)
		}
	}
	c.says([]string{"100.64.2.5/24", "fd94:4a0:dd4d::6440:101/120"}) // another node's
	if got := c.listed("ingress.w"); got != "t1 100.64.2.5 fd94:4a0:dd4d::6440:205" {
		t.Errorf("IPv6: %q", got)
	}
}

func TestWhereADataPathMayBe(t *testing.T) {
	c := newCluster(t)
	c.node("w", 2)
	for say, want := range map[string]string{
		"10.9.0.7": "10.9.0.7", "fd00::7": "fd00::7", "::ffff:10.9.0.7": "10.9.0.7",
		"0.0.0.0": "", "::": "", "255.255.255.255": "", "239.1.1.1": "", "ff02::1": "", "fe80::1%eth0": "", "host": "", "10.9.0.7:80": "",
	} {
		c.must(c.p.PutNode("desc.w", enc(t, &skepv1.NodeDescription{Hostname: "w", Addr: say})))
		c.commit()
		if got := c.get("node.w").GetNode().GetAddr(); got != want {
			t.Errorf("it says %q: its data path is at %q, want %q", say, got, want)
		}
	}
}

func wgKey(b byte) string {
	k := make([]byte, 32)
	k[0], k[31] = b, b
	return base64.StdEncoding.EncodeToString(k)
}

// encryptedNet makes network vault, on which n1 and w have a task each, and gives n1 a key.
func encryptedNet(c *cluster) (port uint32) {
	n := &skepv1.Network{Meta: &skepv1.Meta{Id: "vault"}, Spec: &skepv1.NetworkSpec{Name: "vault", DriverOpts: map[string]string{spec.OptEncrypted: ""}}, Vni: 5000, Ipam: []*skepv1.IPAMConfig{{Subnet: "10.3.0.0/20"}}}
	c.must(c.p.PutSpec("network.vault", enc(c.t, n)))
	c.load("n1", "vault", 1)
	c.load("w", "vault", 1)
	c.lease("n1", "vault")
	port = uint32(spec.EncryptedPort(5000))
	ch, _, err := c.p.Lease("n1", &skepv1.LeaseBlockRequest{NetworkId: "vault", WgPublicKey: wgKey(1), WgPort: port})
	c.must(err)
	c.written(*ch)
	c.commit()
	return port
}

func TestAKeyIsOneNodesOwn(t *testing.T) {
	c := liars(t)
	port := encryptedNet(c)
	for name, tc := range map[string]struct {
		network, key string
		port         uint32
		want         fault.Code
	}{
		"words":                  {"vault", "K", port, fault.CodeInvalid},
		"zero":                   {"vault", base64.StdEncoding.EncodeToString(make([]byte, 32)), port, fault.CodeInvalid},
		"short":                  {"vault", base64.StdEncoding.EncodeToString(make([]byte, 31)), port, fault.CodeInvalid},
		"long":                   {"vault", base64.StdEncoding.EncodeToString(make([]byte, 33)), port, fault.CodeInvalid},
		"another spelling of it": {"vault", strings.Replace(wgKey(1), "E=", "F=", 1), port, fault.CodeInvalid},
		"another node's":         {"vault", wgKey(1), port, fault.CodeConflict},
		"another port":           {"vault", wgKey(2), 53, fault.CodeInvalid},
		"a port too far":         {"vault", wgKey(2), port + 1<<16, fault.CodeInvalid},
		"not encrypted":          {"net", wgKey(2), port, fault.CodeInvalid},
		"no task there":          {"other", wgKey(2), port, fault.CodeDenied},
		"its own":                {"vault", wgKey(2), port, ""},
	} {
		ch, _, err := c.p.Lease("w", &skepv1.LeaseBlockRequest{NetworkId: tc.network, WgPublicKey: tc.key, WgPort: tc.port})
		switch {
		case tc.want == "" && (err != nil || ch == nil):
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && !fault.Is(err, tc.want):
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
	// What was stored before keys were looked at goes.
	c.rev++
	c.must(c.p.PutStored("vault.w", enc(t, &skepv1.MeshRecord{Record: &skepv1.MeshRecord_Endpoints{Endpoints: &skepv1.MeshEndpoints{Blocks: []string{"10.3.0.16/28"}, WgPublicKey: "K", WgPort: 53}}}), c.rev))
	c.commit()
	if e := c.get("vault.w").GetEndpoints(); e.GetWgPublicKey() != "" || e.GetWgPort() != 0 || len(e.GetBlocks()) != 1 {
		t.Errorf("stored garbage stays: %v", e)
	}
	if e := c.get("vault.n1").GetEndpoints(); e.GetWgPublicKey() != wgKey(1) || e.GetWgPort() != port {
		t.Errorf("the honest node's key: %v", e)
	}
}

// A node gets the addresses its tasks need: neither a network's all, nor one of a network without a task of its.
func TestANodeIsLeasedWhatItsTasksNeed(t *testing.T) {
	for _, tc := range []struct {
		subnet        string
		tasks, blocks int
	}{
		{"10.1.0.0/20", 1, 1}, {"10.1.0.0/20", 7, 2}, {"10.1.0.0/20", 30, 5}, {"10.1.0.0/24", 1, 3}, {"10.1.0.0/26", 3, 9}, {"10.1.0.0/28", 1, 4}, {"10.0.0.0/12", 100, 4},
	} {
		c := newCluster(t)
		c.node("w", 2)
		c.network("net", tc.subnet)
		ask := func() error {
			ch, _, err := c.p.Lease("w", &skepv1.LeaseBlockRequest{NetworkId: "net", WantBlock: true})
			if err == nil {
				c.written(*ch)
			}
			return err
		}
		if err := ask(); !fault.Is(err, fault.CodeDenied) {
			t.Errorf("%s: without a task: %v", tc.subnet, err)
		}
		c.load("w", "net", tc.tasks)
		var err error
		for range 300 {
			if err = ask(); err != nil {
				break
			}
		}
		got := len(c.get("net.w").GetEndpoints().GetBlocks())
		if !fault.Is(err, fault.CodeExhausted) || !strings.Contains(err.Error(), "it gets more when it has more tasks") || got != tc.blocks {
			t.Errorf("%s: %d tasks got %d blocks, want %d: %v", tc.subnet, tc.tasks, got, tc.blocks, err)
		}
		// Ended tasks need none.
		st := &skepv1.NodeStatus{}
		for i := range tc.tasks {
			st.Tasks = append(st.Tasks, &skepv1.TaskStatus{TaskId: fmt.Sprint("load-net", i), State: shutdown})
		}
		c.must(c.p.PutStatus("w", enc(t, st)))
		if n := c.p.tasksOn("net", "w"); n != 0 {
			t.Errorf("%d tasks after all have ended", n)
		}
	}
}

// honest is what an honest node's records have to stay like.
func honest(c *cluster) string {
	var out []string
	for _, key := range []string{"node.n1", "net.n1", "other.n1", "vault.n1", "net.info", "vault.info", "net.svc_s"} {
		s, _ := c.p.Get(key)
		out = append(out, fmt.Sprintf("%s %x", key, s.Raw))
	}
	return strings.Join(out, "\n")
}

// Whatever a node reports: nobody else's record changes by it, and its own has nothing of others.
func FuzzNodeStatus(f *testing.F) {
	for _, st := range []*skepv1.NodeStatus{
		{}, {Tasks: []*skepv1.TaskStatus{{TaskId: "t1", State: running, Addresses: []string{"100.64.2.5/24", "::"}, Networks: []*skepv1.NetworkAddress{{NetworkId: "net", Addr: "10.1.0.17/20", Addr6: "fd00::1"}, {NetworkId: "other", Addr: "10.2.0.2"}}}}},
	} {
		f.Add(enc(f, st), "10.0.0.2")
	}
	f.Fuzz(func(t *testing.T, raw []byte, addr string) {
		c := liars(t)
		encryptedNet(c)
		before := honest(c)
		if err := c.p.PutStatus("w", raw); err != nil {
			return
		}
		desc, err := proto.Marshal(&skepv1.NodeDescription{Addr: addr})
		if err != nil {
			return // no text
		}
		c.must(c.p.PutNode("desc.w", desc))
		c.commit()
		if after := honest(c); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if got := c.listed("other.w") + c.listed("vault.w"); got != "" {
			t.Errorf("on networks without a task of it: %s", got)
		}
		for _, e := range c.get("net.w").GetEndpoints().GetEndpoints() {
			if e.TaskId != "t1" || !strings.HasPrefix(e.Addr, "10.1.0.") {
				t.Errorf("listed: %v", e)
			}
		}
	})
}

// Whatever a node asks for: no block becomes another's, no key either, and a network without a task of it stays closed.
func FuzzMeshRequest(f *testing.F) {
	f.Add(enc(f, &skepv1.LeaseBlockRequest{NetworkId: "vault", WantBlock: true, WgPublicKey: wgKey(1), WgPort: 51}), enc(f, &skepv1.ReturnBlocksRequest{NetworkId: "net", Blocks: []string{"10.1.0.16/28", "10.1.0.0/28"}}), "t1")
	f.Add(enc(f, &skepv1.LeaseBlockRequest{NetworkId: "node", WgPublicKey: wgKey(2)}), enc(f, &skepv1.ReturnBlocksRequest{NetworkId: "ingress"}), "")
	f.Fuzz(func(t *testing.T, lease, back []byte, drain string) {
		c := liars(t)
		encryptedNet(c)
		before := honest(c)
		req, ret := &skepv1.LeaseBlockRequest{}, &skepv1.ReturnBlocksRequest{}
		if proto.Unmarshal(lease, req) != nil || proto.Unmarshal(back, ret) != nil {
			return
		}
		if ch, _, err := c.p.Lease("w", req); err == nil && ch != nil {
			if item := ch.Item(); item != "w" || strings.HasPrefix(ch.Key, "other.") {
				t.Fatalf("it was let write %s", ch.Key)
			}
			c.written(*ch)
		}
		if ch, err := c.p.Return("w", ret); err == nil && ch != nil {
			if ch.Item() != "w" {
				t.Fatalf("it was let write %s", ch.Key)
			}
			c.written(*ch)
		}
		c.p.Drain("w", []string{drain})
		c.commit()
		if after := honest(c); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if mine := c.get("vault.w").GetEndpoints(); mine.GetWgPublicKey() == wgKey(1) || slices.Contains(mine.GetBlocks(), "10.3.0.0/28") {
			t.Errorf("it has what is another's: %v", mine)
		}
	})
}

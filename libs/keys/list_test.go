package keys

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"skep.dev/libs/doctest"
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// table is the list as docs/contracts.md shows it.
func table() string {
	var b strings.Builder
	b.WriteString("| bucket | key | value | writer |\n|---|---|---|---|\n")
	for _, f := range families {
		bucket, value := string(f.Bucket), f.Text
		if bucket == "" {
			bucket = "every one but lease"
		}
		if f.Value != nil {
			value = strings.TrimSuffix(string(f.Value.Descriptor().Name())+": "+f.Text, ": ")
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", bucket, f.Form, value, f.Writer)
	}
	return b.String()
}

func TestContractsShowTheKeys(t *testing.T) { doctest.Table(t, "libs/keys", table()) }

// Each key leads back to its family and to what it was made of. The keys are spelled out here: clusters hold them.
func TestKeysAreReadBack(t *testing.T) {
	for _, c := range []struct {
		f       *Family
		key, is string
		id      string
	}{
		{Cluster, Cluster.Key(), "cluster", ""},
		{Service, Service.Key("s1"), "service.s1", "s1"},
		{ServiceName, Name(ServiceName, "Web"), "idx.service.etim4", "etim4"},
		{NetworkName, Name(NetworkName, "home"), "idx.network.d1nmqp8", "d1nmqp8"},
		{Stack, Stack.Key("k1"), "stack.k1", "k1"},
		{StackName, Name(StackName, "Blog"), "idx.stack.c9m6upo", "c9m6upo"},
		{NodeNumber, Number(NodeNumber, uint32(7)), "idx.nodenum.7", "7"},
		{Port, PortKey("tcp", 80), "idx.port.tcp.80", "tcp.80"},
		{VNI, Number(VNI, uint32(4097)), "idx.vni.4097", "4097"},
		{Subnet, SubnetKey(netip.MustParsePrefix("10.0.1.0/24")), "idx.subnet.10.0.1.0-24", "10.0.1.0-24"},
		{VIP, VIPKey("n1", netip.MustParseAddr("10.0.0.2")), "idx.vip.n1.10-0-0-2", "n1.10-0-0-2"},
		{Depends, Depends.Key(), "idx.depends", ""},
		{Revision, RevisionKey("s1", 12), "service.s1.12", "s1.12"},
		{StackRevision, StackRevisionKey("k1", 12), "stack.k1.12", "k1.12"},
		{TaskFence, TaskFence.Key(), "fence", ""},
		{Rollout, Rollout.Key("s1"), "rollout.s1", "s1"},
		{Claim, ClaimKey("rexray", "web_data"), "claim.qlttq0egk2troa7o8j74uhl8a4oe6p08", "qlttq0egk2troa7o8j74uhl8a4oe6p08"},
		{Unplaced, UnplacedKey("s1", 3), "_.s1.3", "s1.3"},
		{NodeTasks, NodeTasks.Key("n1"), "n1", "n1"},
		{Status, Status.Key("n1"), "n1", "n1"},
		{Description, Description.Key("n1"), "desc.n1", "n1"},
		{Live, Live.Key("n1"), "live.n1", "n1"},
		{EndpointFence, EndpointFence.Key(), "fence", ""},
		{Endpoint, Endpoint.Key(ScopeIngress, ServiceItem("s1")), "ingress.svc_s1", "ingress.svc_s1"},
		{CA, CA.Key(), "ca", ""},
		{Token, Token.Key("worker"), "token.worker", "worker"},
		{User, User.Key("ab12"), "user.ab12", "ab12"},
		{LeaseMesh, LeaseMesh.Key(), "mesh", ""},
	} {
		f, id := Of(c.f.Bucket, c.key)
		if c.key != c.is || f != c.f || id != c.id {
			t.Errorf("%s: key %q, read back as %v with %q; want %q", c.f.Form, c.key, f, id, c.is)
		}
	}
	if p, ok := ParseSubnet("idx.subnet.10.0.1.0-24"); !ok || p.String() != "10.0.1.0/24" {
		t.Error(p, ok)
	}
	if s, n, ok := ParseStackRevision("stack.k1.12"); s != "k1" || n != 12 || !ok {
		t.Error(s, n, ok)
	}
	if s, n, ok := ParseRevision("service.s1.12"); s != "s1" || n != 12 || !ok {
		t.Error(s, n, ok)
	}
	if id, ok := ParseServiceItem("svc_s1"); id != "s1" || !ok {
		t.Error(id, ok)
	}
}

func TestWhatIsNoKey(t *testing.T) {
	for _, c := range []struct {
		b   subject.Bucket
		key string
	}{{subject.Spec, "clusters"}, {subject.Spec, "service"}, {subject.Spec, "service."}, {subject.Spec, "secret.x"}, {subject.Rev, "service"}, {subject.Secret, "x"}, {"other", "cluster"}, {subject.Lease, "state"}} {
		if f, _ := Of(c.b, c.key); f != nil {
			t.Errorf("%s/%s is %s", c.b, c.key, f.Form)
		}
	}
	for _, key := range []string{"service.s1", "service.s1.x", "service.s1.-1", "s1.1", ""} {
		if s, n, ok := ParseRevision(key); ok {
			t.Errorf("%q is revision %d of %s", key, n, s)
		}
	}
	for key, want := range map[string][2]string{"n1": {"n1", ""}, "n1.2": {"n1", ""}, "_.s1.0": {"", "s1"}, "_.s1": {}, "fence": {}, "claim.x": {}, "rollout.s1": {}, "checkpoint": {}, "": {}} {
		if node, service := PageOwner(key); node != want[0] || service != want[1] {
			t.Errorf("%q is of node %q, service %q", key, node, service)
		}
	}
	if f, _ := Of(subject.Status, "checkpoint"); f != Checkpoint {
		t.Error("a checkpoint is taken for a node's status")
	}
}

// Every bucket has a family, a beginning is no beginning of another's, and what begins with nothing comes last.
func TestFamiliesDoNotOverlap(t *testing.T) {
	for _, b := range subject.Buckets {
		list := inBucket[b]
		if len(list) == 0 {
			t.Errorf("nothing is known of bucket %s", b)
		}
		for i, f := range list {
			for j, g := range list {
				if i < j && (f.begin == "" || strings.HasPrefix(g.begin, f.begin)) {
					t.Errorf("%s: %s hides %s", b, f.Form, g.Form)
				}
			}
		}
	}
}

func TestDecode(t *testing.T) {
	if m, err := Service.Decode(nil); m != nil || err != nil {
		t.Error(m, err)
	}
	if m, err := VNI.Decode([]byte("x")); m != nil || err != nil {
		t.Error(m, err)
	}
	if m, err := Service.Decode([]byte{}); err != nil || m.(*pb.Service) == nil {
		t.Error(m, err)
	}
	if _, err := Service.Decode([]byte{0xff}); err == nil {
		t.Error("garbage is a service")
	}
}

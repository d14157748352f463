package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// upkeep is what the services answer the doctor.
type upkeep struct {
	clocks *skepv1.ClocksReply
	audit  *skepv1.ClusterCheckReply
	vault  *skepv1.VaultCheckReply
	claims []*skepv1.VolumeClaim
	store  *skepv1.StoreStateReply
}

func (c *cluster) serveUpkeep() {
	c.t.Helper()
	c.upkeep = upkeep{
		clocks: textOf(c.t, &skepv1.ClocksReply{}, `heard: 2`),
		audit:  &skepv1.ClusterCheckReply{},
		vault:  &skepv1.VaultCheckReply{CaFromUnixMs: testNow.AddDate(-1, 0, 0).UnixMilli(), CaUntilUnixMs: testNow.AddDate(19, 0, 0).UnixMilli()},
		store: textOf(c.t, &skepv1.StoreStateReply{}, `write_micros: 1234 slowest_micros: 2000 free_bytes: 107374182400 total_bytes: 214748364800 store_bytes: 1048576 store_limit_bytes: 21474836480 dir: "/var/lib/skep/bus"
			streams { name: "KV_spec" leader: "m1" } streams { name: "KV_task" leader: "m1" }`),
	}
	c.upkeep.clocks.NodeId, c.upkeep.clocks.NowUnixMs = nodeID, testNow.UnixMilli()
	onNode(c, api.HealthClocks, func(*skepv1.ClocksRequest) (*skepv1.ClocksReply, error) { return said(c, c.upkeep.clocks) })
	onNode(c, api.ClusterCheck, func(*skepv1.Empty) (*skepv1.ClusterCheckReply, error) { return said(c, c.upkeep.audit) })
	onNode(c, api.VolumeClaims, func(r *skepv1.ListClaimsRequest) (*skepv1.ListClaimsReply, error) {
		// One a page: who asks must follow.
		out := &skepv1.ListClaimsReply{}
		for i, x := range c.upkeep.claims {
			if r.GetPage().GetAfter() == "" && i == 0 || i > 0 && c.upkeep.claims[i-1].GetName() == r.GetPage().GetAfter() {
				out.Claims = c.upkeep.claims[i : i+1]
				if i+1 < len(c.upkeep.claims) {
					out.Next = x.GetName()
				}
				break
			}
		}
		return said(c, out)
	})
	onNode(c, api.VaultCheck, func(*skepv1.Empty) (*skepv1.VaultCheckReply, error) { return said(c, c.upkeep.vault) })
	onNode(c, api.StoreState.At(nodeID), func(*skepv1.StoreStateRequest) (*skepv1.StoreStateReply, error) { return said(c, c.upkeep.store) })
}

func said[M proto.Message](c *cluster, m M) (M, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return proto.CloneOf(m), nil
}

// TestDoctorAsksTheServices: what services say of themselves is in the answer, each in its group.
func TestDoctorAsksTheServices(t *testing.T) {
	c := meshCluster(t)
	c.nodes[0].Manager = &skepv1.ManagerStatus{Leader: true, Reachability: "reachable"}
	c.nodes[0].Description.CertFromUnixMs, c.nodes[0].Description.CertUntilUnixMs = testNow.AddDate(0, 0, -10).UnixMilli(), testNow.AddDate(0, 0, 80).UnixMilli()
	r := c.run("doctor")
	for _, line := range []string{
		"OK        certificates   1 node, the first ends in 80 days; the CA's ends in 19 years",
		"OK        clocks         those of 2 nodes are known and near manager w1's",
		"OK        store of w1    a durable write takes 1.2ms (the slowest of a few 2ms), 100GiB free",
		"OK        streams        2 have a leader, and every replica is up to date (1 copy each)",
		"OK        secrets        services use every secret and config, and nothing is left over in the vault",
		"OK        leftovers      nothing is left in the store of what is gone",
	} {
		if !strings.Contains(r.out, line+"\n") {
			t.Errorf("no line %q in\n%s", line, r.out)
		}
	}
	want(t, r, 0, "", "")

	c.mu.Lock()
	c.upkeep.clocks.Clocks = []*skepv1.NodeClock{{NodeId: node2, AheadMs: -12_300}}
	c.upkeep.vault.Unused = []*skepv1.UnusedSecret{{Kind: skepv1.SecretKind_SECRET_KIND_SECRET, Id: "s1", Name: "db_password"}}
	c.upkeep.audit.Orphans = []string{"rev/service.gone.*"}
	c.upkeep.store.WriteMicros = 250_000
	c.mu.Unlock()
	r = c.run("doctor")
	for _, line := range []string{
		"WARN      clock of w2    it is 12 seconds behind manager w1's: set it right there",
		"WARN      secrets        no service uses 1 secret: db_password; `skep secret rm` removes what is not needed",
		"WARN      leftovers      1 key of services and nodes that are gone could not be removed: rev/service.gone.*;",
		"WARN      store of w1    a durable write takes 250ms, and every change waits for one",
	} {
		if !strings.Contains(r.out, line) {
			t.Errorf("no line %q in\n%s", line, r.out)
		}
	}
	want(t, r, 0, "", "") // warnings alone

	// The clock that counts is a manager's: the certificate has ended by it.
	c.mu.Lock()
	c.upkeep.clocks.NowUnixMs = testNow.AddDate(0, 0, 81).UnixMilli()
	c.mu.Unlock()
	want(t, c.run("doctor"), 1, "ERROR     certificate of w1   it ended 2026-03-23 15:00 UTC", "")
}

// TestDoctorOfSilentServices: who does not answer costs a bounded time and is named; who may not ask is told so.
func TestDoctorOfSilentServices(t *testing.T) {
	c := meshCluster(t)
	c.nodes[0].Manager = &skepv1.ManagerStatus{Leader: true, Reachability: "reachable"}
	c.on = func(r proto.Message) error {
		switch r.(type) {
		case *skepv1.ClocksRequest, *skepv1.StoreStateRequest:
			return fault.Unavailable("not now")
		case *skepv1.Empty:
			return fault.Unavailable("locked")
		}
		return nil
	}
	r := c.run("doctor")
	want(t, r, 1, "the health monitor does not answer, so nobody notices nodes that fail: not now", "")
	for _, line := range []string{"its broker does not say how the store is: not now", "the vault does not answer, so no node joins", "state does not say what is left of objects that are gone: locked", "OK        mesh of w2"} {
		if !strings.Contains(r.out, line) {
			t.Errorf("no line %q in\n%s", line, r.out)
		}
	}

	c.mu.Lock()
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.StoreStateRequest); ok {
			return fault.Denied("not you")
		}
		return nil
	}
	c.mu.Unlock()
	r = c.run("doctor")
	if r.code != 0 || !strings.Contains(r.out, "WARN      rights         not looked at, because you may not see it: the managers' stores; ") || !strings.Contains(r.out, "OK        mesh of w2") {
		t.Errorf("%d %s\n%s", r.code, r.err, r.out)
	}
	// A viewer may ask state alone.
	c.mu.Lock()
	c.on = func(r proto.Message) error {
		switch r.(type) {
		case *skepv1.ListNodesRequest, *skepv1.ListServicesRequest, *skepv1.ListNetworksRequest, *skepv1.ListTasksRequest:
			return nil
		}
		return fault.Denied("not you")
	}
	c.mu.Unlock()
	r = c.run("doctor")
	if r.code != 0 || !strings.Contains(r.out, "2 of 2 ready") || strings.Contains(r.out, "ERROR") || !strings.Contains(r.out, "the nodes' kernels") || !strings.Contains(r.out, "clocks, ") {
		t.Errorf("%d %s\n%s", r.code, r.err, r.out)
	}
}

// TestDoctorDoesNotHang: services that hear the question and do not answer.
func TestDoctorDoesNotHang(t *testing.T) {
	c := meshCluster(t)
	c.nodes[0].Manager = &skepv1.ManagerStatus{Leader: true, Reachability: "reachable"}
	block := make(chan struct{})
	defer close(block)
	c.on = func(r proto.Message) error { // of these without the lock: see onNode
		switch r.(type) {
		case *skepv1.ClocksRequest, *skepv1.StoreStateRequest, *skepv1.Empty:
			<-block
		}
		return nil
	}
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	env.NodeTimeout = 300 * time.Millisecond
	began := time.Now()
	code := Main(t.Context(), env, []string{"doctor"})
	if took := time.Since(began); code != 1 || took > 5*time.Second {
		t.Errorf("status %d after %s", code, took)
	}
	if n := strings.Count(out.String(), "ERROR") + strings.Count(out.String(), "WARN"); n != 4 {
		t.Errorf("%d parts named:\n%s%s", n, out.String(), errs.String())
	}
}

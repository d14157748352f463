package vault

import (
	"net"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/join"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// putManagers writes down the group, as the bus does.
func (c *cluster) putManagers(t testing.TB, set *skepv1.ManagerSet) {
	t.Helper()
	body, err := proto.Marshal(set)
	if err == nil {
		_, err = kv.Open(c.vault.js, subject.NodeB).Put(ctx(t), keys.Managers.Key(), body)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestManagersAreTold: who joins, who is shown a token and who is certified learns where the group's managers are.
func TestManagersAreTold(t *testing.T) {
	c := start(t)
	token := func() []string {
		t.Helper()
		r, err := api.Call(ctx(t), c.nc, api.TokenGet, &skepv1.JoinTokenRequest{Role: skepv1.NodeRole_NODE_ROLE_MANAGER})
		if err != nil {
			t.Fatal(err)
		}
		return r.ManagerAddrs
	}
	if got := token(); !slices.Equal(got, []string{c.addr}) {
		t.Errorf("without a group: %v", got)
	}
	const voter = skepv1.ManagerState_MANAGER_STATE_VOTER
	c.putManagers(t, &skepv1.ManagerSet{Epoch: 3, Managers: []*skepv1.Manager{
		{NodeId: "other", Addr: "10.0.0.1:2377", State: voter}, {NodeId: c.boot.NodeID, Addr: "10.0.0.2:2377", State: voter},
		{NodeId: "new", Addr: "10.0.0.3:2377", State: skepv1.ManagerState_MANAGER_STATE_JOINING},
	}})
	want := []string{"10.0.0.2:2377", "10.0.0.1:2377"}
	if got := token(); !slices.Equal(got, want) {
		t.Errorf("with a group: %v, want %v", got, want)
	}
	r, err := join.Join(ctx(t), c.addr, c.boot.WorkerToken, join.Params{Hostname: "w1"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Reply.ManagerAddrs, want) || r.Reply.Epoch != 3 {
		t.Errorf("who joins is told %v", r.Reply)
	}
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	u, err := api.Call(ctx(t), c.nc, api.UserIssue, &skepv1.IssueUserRequest{Name: "ann", Role: "admin", CsrDer: csr})
	if err != nil || !slices.Equal(u.ManagerAddrs, want) {
		t.Errorf("a user is told %v, %v", u.GetManagerAddrs(), err)
	}
}

// TestManagerJoins: the managers' token makes a certificate that serves, at the host the manager advertises; a renewal is for
// the role the cluster has for the node then, and for the hosts it is known at.
func TestManagerJoins(t *testing.T) {
	c := start(t)
	r, err := join.Join(ctx(t), c.addr, c.boot.ManagerToken, join.Params{Hostname: "m2", Addr: "10.0.0.9:2377"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificate(r.Cert)
	if err != nil {
		t.Fatal(err)
	}
	has := func(want ...string) {
		t.Helper()
		for _, ip := range want {
			if !slices.ContainsFunc(leaf.IPAddresses, net.ParseIP(ip).Equal) {
				t.Errorf("a certificate for %v lacks %s", leaf.IPAddresses, ip)
			}
		}
	}
	id, err := pki.FromCertificate(leaf)
	if err != nil || id.Role != pki.Manager || r.Reply.Role != skepv1.NodeRole_NODE_ROLE_MANAGER {
		t.Fatalf("certified as %v, %v", id, err)
	}
	has("10.0.0.9")
	c.mu.Lock()
	admitted := c.nodes[id.NodeID]
	c.mu.Unlock()
	if admitted.GetRole() != skepv1.NodeRole_NODE_ROLE_MANAGER || admitted.GetAddr() != "10.0.0.9" {
		t.Errorf("admitted as %v", admitted)
	}
	c.putManagers(t, &skepv1.ManagerSet{Managers: []*skepv1.Manager{{NodeId: id.NodeID, Addr: "10.0.0.10:2377", State: skepv1.ManagerState_MANAGER_STATE_VOTER}}})
	renew := func() pki.Identity {
		t.Helper()
		_, csr, err := pki.NewKeyAndCSR()
		if err != nil {
			t.Fatal(err)
		}
		r, err := api.Call(ctx(t), c.as(t, api.VaultRenew.Verb, id.NodeID), api.VaultRenew.At(id.NodeID), &skepv1.RenewRequest{CsrDer: csr})
		if err != nil {
			t.Fatal(err)
		}
		if leaf, err = pki.ParseCertificate(r.CertPem); err != nil {
			t.Fatal(err)
		}
		id, err := pki.FromCertificate(leaf)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if got := renew(); got.Role != pki.Manager {
		t.Errorf("renewed as %v", got)
	}
	has("10.0.0.10")
	c.mu.Lock()
	admitted.Role = skepv1.NodeRole_NODE_ROLE_WORKER
	c.mu.Unlock()
	if got := renew(); got.Role != pki.Worker || len(leaf.IPAddresses) > 0 {
		t.Errorf("renewed as %v, good for %v", got, leaf.IPAddresses)
	}
}

// TestFormerManagersLocks: of who is no manager any more nobody says how its key rests.
func TestFormerManagersLocks(t *testing.T) {
	c := startGrown(t)
	put := func(node string) {
		t.Helper()
		body, err := proto.Marshal(&skepv1.ManagerLock{NodeId: node, Hostname: node, Locked: true})
		if err == nil {
			var rev uint64
			if rev, err = c.vault.bucket.Put(ctx(t), keys.ManagerLock.Key(node), body); err == nil {
				err = c.vault.feed.Wait(ctx(t), rev)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stays, goes, demoted := c.vaultNode(t), "gone", c.vaultNode(t)
	c.joined(stays, "m2", skepv1.NodeRole_NODE_ROLE_MANAGER)
	c.joined(demoted, "m3", skepv1.NodeRole_NODE_ROLE_WORKER)
	for _, n := range []string{stays.Identity().NodeID, goes, demoted.Identity().NodeID} {
		put(n)
	}
	c.vault.dropLocks(ctx(t))
	if err := c.vault.feed.Current(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if left := c.vault.lock.picture.others(c.boot.NodeID); !slices.Equal(left, []string{stays.Identity().NodeID}) {
		t.Errorf("left are %v", left)
	}
}

package vault

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/join"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
)

// A witness joins with the managers' token alone, and is certified as one, at every renewal and whatever its role is then.
func TestAWitnessJoins(t *testing.T) {
	c := start(t)
	params := join.Params{Hostname: "v1", Addr: "10.0.0.9:2377", Witness: true}
	if _, err := join.Join(ctx(t), c.addr, c.boot.WorkerToken, params); !fault.Is(err, fault.CodeDenied) || !strings.Contains(err.Error(), "takes the managers' token") {
		t.Fatalf("with the workers' token: %v", err)
	}
	c.mu.Lock()
	if len(c.nodes) != 0 {
		t.Errorf("a refused join was admitted: %v", c.nodes)
	}
	c.mu.Unlock()
	r, err := join.Join(ctx(t), c.addr, c.boot.ManagerToken, params)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Create(filepath.Join(t.TempDir(), "certs"), r.Cert, r.Key, r.CA)
	if err != nil {
		t.Fatal(err)
	}
	node := s.Identity().NodeID
	c.mu.Lock()
	n := c.nodes[node]
	c.mu.Unlock()
	if s.Identity().Role != pki.Witness || !n.GetWitness() || n.Role != skepv1.NodeRole_NODE_ROLE_MANAGER || n.Availability != skepv1.Availability_AVAILABILITY_DRAIN {
		t.Fatalf("certified as %s, admitted as %v", s.Identity().Role, n)
	}
	for _, role := range []skepv1.NodeRole{skepv1.NodeRole_NODE_ROLE_MANAGER, skepv1.NodeRole_NODE_ROLE_WORKER} {
		c.mu.Lock()
		n.Role = role
		c.mu.Unlock()
		_, csr, err := pki.NewKeyAndCSR()
		if err != nil {
			t.Fatal(err)
		}
		reply, err := c.vault.renew(ctx(t), node, &skepv1.RenewRequest{NodeId: node, CsrDer: csr})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := pki.ParseCertificate(reply.CertPem)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := pki.FromCertificate(leaf); err != nil || id.Role != pki.Witness {
			t.Errorf("as a %v it is certified as %v (%v)", role, id.Role, err)
		}
	}
}

// It gets neither the master key nor a secret: whoever asks must be what the vault certified.
func TestAWitnessGetsNoKeyAndNoSecret(t *testing.T) {
	c := startGrown(t)
	v := c.node(t, pki.Witness)
	node := v.Identity().NodeID
	c.joined(v, "v1", skepv1.NodeRole_NODE_ROLE_MANAGER)
	a, err := seal.AskMaster(v, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	if reply, err := api.Call(ctx(t), c.conn("vault", node), api.VaultMaster.At(node), a.Request); !fault.Is(err, fault.CodeDenied) || len(reply.GetSealed()) > 0 {
		t.Errorf("the master key: %v", err)
	}
	ask, err := seal.Ask(v, &skepv1.DeliverAsk{NodeId: node, Reader: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.vault.deliver(ctx(t), node, ask); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("a secret: %v", err)
	}
}

package vault

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
)

// Whatever a stranger sends: no certificate without the token's secret, none but of the request's key, and what the cluster
// hears of the node is a word.
func FuzzJoinRequest(f *testing.F) {
	c := start(f)
	c.vault.log, c.vault.refusals = zap.NewNop(), zap.NewNop() // the vault's test log is of f, not of the targets
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		f.Fatal(err)
	}
	add := func(right bool, r *skepv1.JoinRequest) {
		body, err := rpc.Encode(r, false)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(right, body)
	}
	now := timestamppb.Now()
	add(true, &skepv1.JoinRequest{CsrDer: csr, Hostname: "w1", Addr: "10.0.0.1", Now: now, Availability: skepv1.Availability_AVAILABILITY_DRAIN})
	add(true, &skepv1.JoinRequest{CsrDer: csr, Hostname: "w1\n\x1b[2J", Addr: "10.0.0.1"})
	add(true, &skepv1.JoinRequest{CsrDer: csr, Hostname: strings.Repeat("h", 300), Addr: "é"})
	add(true, &skepv1.JoinRequest{CsrDer: csr[:40], Now: &timestamppb.Timestamp{Seconds: 1 << 62, Nanos: -1}})
	add(false, &skepv1.JoinRequest{Token: c.boot.WorkerToken[:82] + "-", CsrDer: csr})
	add(false, &skepv1.JoinRequest{Token: "SKEP-1-" + strings.Repeat("0", 50) + "-" + strings.Repeat("0", 25), CsrDer: csr})
	f.Add(false, []byte(`{"token":"SKEP-1-","csr_der":"AAAA","now":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, right bool, body []byte) {
		var r skepv1.JoinRequest
		if _, err := rpc.Decode(body, "", &r); err != nil {
			return
		}
		if right {
			r.Token = c.boot.WorkerToken
		}
		reply, err := c.vault.join(ctx(t), &r)
		if err != nil {
			if secret := c.boot.WorkerToken[58:]; strings.Contains(err.Error(), secret) {
				t.Errorf("the error repeats the token's secret: %v", err)
			}
			return
		}
		if r.Token != c.boot.WorkerToken && r.Token != c.boot.ManagerToken {
			t.Fatalf("joined with the token %q", r.Token)
		}
		cert, err := pki.ParseCertificate(reply.CertPem)
		if err != nil {
			t.Fatal(err)
		}
		ident, err := pki.FromCertificate(cert)
		csr, cerr := pki.ParseCSR(r.CsrDer)
		if err != nil || cerr != nil || ident.NodeID != pki.NodeIDFor(csr) || ident.Role != pkiRole(reply.Role) || time.Until(cert.NotAfter) > pki.DefaultExpiry {
			t.Errorf("certified %+v until %v: %v, %v", ident, cert.NotAfter, err, cerr)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		n := c.nodes[ident.NodeID]
		if n == nil || printable(n.Hostname) != n.Hostname || printable(n.Addr) != n.Addr || len(n.Hostname)+len(n.Addr) > 2*maxNameLen {
			t.Errorf("the cluster was told of %v", n)
		}
	})
}

package daemon

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// One process of a node renews the certificate, the others use it soon after.
func TestARenewedCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	ca := pkitest.NewCA(t)
	issue := func(node string) (cert, key []byte) {
		return pkitest.Certify(t, ca, pki.Identity{NodeID: node, Role: pki.Worker}, time.Minute)
	}
	node := id.New()
	cert, key := issue(node)
	agent, err := pki.Create(dir, cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Main{}.certificate(ctx, Env{Store: mesh, Log: zap.NewNop()}, nil, nil)
	}()
	cert, key = issue(node)
	if err := agent.Save(cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); !mesh.Leaf().Equal(agent.Leaf()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new certificate is not in use")
		}
	}
	cancel()
	<-done

	// Another node's is not taken, nor one without its key.
	cert, key = issue(id.New())
	if err := agent.Save(cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	if changed, err := mesh.Reload(); changed || err == nil || mesh.Identity().NodeID != node {
		t.Errorf("another node's certificate: %v %v", changed, err)
	}
}

func TestUsage(t *testing.T) {
	m := Main{Name: "skep-x", About: "does x", Role: "x"}
	dir := t.TempDir()
	for args, want := range map[string]struct {
		code int
		say  string
	}{
		"-help":                 {0, "Usage: skep-x [flags]"},
		"-version":              {0, "skep-x dev"},
		"-nope":                 {2, "flag provided but not defined"},
		"more":                  {2, "unexpected argument"},
		"-log-level loud":       {2, "log level"},
		"-metrics-addr nowhere": {2, `metrics address "nowhere": want HOST:PORT`},
		"-data-dir " + dir:      {1, "skep init"},
		"-nats a -certs " + dir: {1, "certificate"},
	} {
		var out strings.Builder
		if code := m.run(t.Context(), strings.Fields(args), &out); code != want.code || !strings.Contains(out.String(), want.say) {
			t.Errorf("skep-x %s: exit status %d, %s", args, code, out.String())
		}
	}
}

// A manager's service on a worker says so, before it does anything.
func TestManagersOnly(t *testing.T) {
	ca := pkitest.NewCA(t)
	cert, key := pkitest.Certify(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	p := member.Paths{Data: t.TempDir()}
	if _, err := pki.Create(p.Certs(), cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	if err := (&member.Record{NodeID: "n", Role: member.RoleWorker}).Save(p); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	m := Main{Name: "skep-x", Role: "x", Managers: true}
	if code := m.run(t.Context(), []string{"-data-dir", p.Data}, &out); code != 1 || !strings.Contains(out.String(), "runs on managers") {
		t.Errorf("exit status %d, %s", code, out.String())
	}
}

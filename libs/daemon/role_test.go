package daemon

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// TestANodeBecomesAWorker: a manager's service is done, and what every node has goes on and is told.
func TestANodeBecomesAWorker(t *testing.T) {
	dir, ca, node := t.TempDir(), pkitest.NewCA(t), id.New()
	cert, key := pkitest.Certify(t, ca, pki.Identity{NodeID: node, Role: pki.Manager}, time.Minute)
	agent, err := pki.Create(dir, cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	open := func() Env {
		s, err := pki.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return Env{Store: s, Log: zap.NewNop()}
	}
	bus, mesh := open(), open()
	ctx, done := context.WithCancelCause(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Main{Name: "skep-bus", Managers: true}.certificate(ctx, bus, done, func(bool) { t.Error("the bus is no worker's") })
	}()
	life, stop := context.WithCancel(t.Context())
	told := make(chan bool, 1)
	end := make(chan struct{})
	go func() {
		defer close(end)
		Main{Name: "skep-mesh"}.certificate(life, mesh, func(error) { t.Error("the mesh ended") }, func(manager bool) { told <- manager })
	}()
	cert, key = pkitest.Certify(t, ca, pki.Identity{NodeID: node, Role: pki.Worker}, time.Minute)
	if err := agent.Save(cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := context.Cause(ctx); !errors.Is(err, ErrDone) {
		t.Errorf("the bus ended with %v", err)
	}
	if <-told || mesh.Store.Identity().Role != pki.Worker {
		t.Error("the mesh was told that the node is a manager")
	}
	stop()
	<-end
}

package bus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

// runManager runs m until it is ready; ended has what Run returns after cancel.
func runManager(t *testing.T, m *Manager) (cancel context.CancelFunc, ended chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	select {
	case <-m.Ready():
	case err := <-ended:
		cancel()
		t.Fatal(err)
	case <-time.After(patience):
		cancel()
		t.Fatal("not ready")
	}
	return cancel, ended
}

// A manager's broker in a process of its own: it makes the streams, lets the services of its own node found the cluster,
// gives each its own permissions, and refuses who was removed.
func TestManager(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	cfg.Found = true
	sock := filepath.Join(t.TempDir(), "run", "skep.sock")
	m, err := NewManager(cfg, sock)
	if err != nil {
		t.Fatal(err)
	}
	cancel, ended := runManager(t, m)
	defer cancel()
	if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket of local root: %v %v", st, err)
	}

	// No node is stored yet; this manager's services are let in all the same, each with its own rights.
	creds := cfg.TLS
	keys := map[string]string{
		"state": subject.Spec.Key("x"), "scheduler": subject.Task.Key("x"), "vault": subject.Secret.Key("x"), "health": subject.NodeB.Key("live.x"),
	}
	for name := range keys {
		p := dial(t, m.Bus, creds, nats.UserInfo(name, ""), nats.Name(name))
		for owner, key := range keys {
			if owner == name {
				if _, err := p.Request(key, []byte("y"), 10*time.Second); err != nil {
					t.Errorf("%s cannot write %s: %v", name, key, err)
				}
				continue
			}
			p.mustNotPublish(key, nil)
		}
	}
	agent := dial(t, m.Bus, creds, nats.UserInfo("agent", ""), nats.Name("agent"))
	agent.mustPublish(subject.Heartbeat(cfg.NodeID))
	agent.mustNotPublish(subject.Spec.Key("x"), nil)
	if _, err := tryDial(t, m.Bus, creds, nats.UserInfo("schedular", "")); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a service that does not exist was let in: %v", err)
	}

	// Once nodes are known, those that are not among them stay outside.
	js, err := jetstream.New(dial(t, m.Bus, creds, nats.Name("everything")).Conn)
	if err != nil {
		t.Fatal(err)
	}
	worker := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	spec := kv.Open(js, subject.Spec)
	for _, n := range []string{cfg.NodeID, worker.Identity().NodeID} {
		if _, err := spec.Put(within(t), "node."+n, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	p := dial(t, m.Bus, worker)
	stranger := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)
	if err := await(within(t), 10*time.Millisecond, patience, func() bool {
		_, err := tryDial(t, m.Bus, stranger)
		return errors.Is(err, nats.ErrAuthorization)
	}); err != nil {
		t.Error("a node that nobody admitted is let in")
	}
	e, err := spec.Get(within(t), "node."+worker.Identity().NodeID)
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.Delete(within(t), "node."+worker.Identity().NodeID, e.Revision); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.closed:
	case <-time.After(patience):
		t.Error("a removed node is still connected")
	}

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := os.Stat(sock); !os.IsNotExist(err) {
		t.Errorf("a stopped broker left its socket: %v", err)
	}
}

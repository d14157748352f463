package bus

import (
	"errors"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

// A server stops its store when its disk is full, and leaves it so: the broker ends when there is room, and works again with
// what it had.
func TestAStoreThatStoppedStartsAgain(t *testing.T) {
	cfg := lone(t, pkitest.NewCA(t), id.New())
	cfg.Found, cfg.Witness = true, ""
	m, _, ended := manage(t, cfg)
	awaitReady(t, m, ended, patience)
	_, js := inProcessJS(t, m.Bus, "manager")
	if _, err := kv.Open(js, subject.Spec).Put(within(t), "test.1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := m.running().ShutdownJetStream(); err != nil { // as it does itself at a full disk
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, ErrStore) {
			t.Fatalf("it ends with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("a broker without its store goes on")
	}
	m, _, ended = manage(t, cfg)
	awaitReady(t, m, ended, patience)
	_, js = inProcessJS(t, m.Bus, "manager")
	if _, err := kv.Open(js, subject.Spec).Get(within(t), "test.1"); err != nil {
		t.Error(err)
	}
}

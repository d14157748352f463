package rpc_test

import (
	"context"
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

func TestActorFrom(t *testing.T) {
	verb, node := subject.API("service", "rm"), subject.Node("aaaaaaaaaaaaaaaaaaaaaaaaa", "exec.open")
	for _, c := range []struct{ asked, reply, name, address string }{
		{subject.By(verb, "user-ada", "c0000207"), "_INBOX_user-ada.x", "user-ada", "192.0.2.7"},
		{subject.By(node, "user-ada", "20010db8000000000000000000000001"), "_INBOX_user-ada.x", "user-ada", "2001:db8::1"},
		{subject.By(verb, "user-ada", "c0000207"), "_INBOX_user-bob.x", "user-ada", "192.0.2.7"}, // the subject is proof, whatever the inbox
		{subject.By(verb, "user-ada", subject.Local), "_INBOX_user-ada.x", "user-ada", subject.Local},
		{subject.By(verb, "user-ada", "nonsense"), "_INBOX_user-ada.x", "user-ada", subject.Local},
		{verb, "_INBOX_user-bob.x", rpc.Unknown, ""},
		{verb, "_INBOX_viewer.user-bob.x", rpc.Unknown, ""},
		{verb, "_INBOX.x", rpc.Root, subject.Local},
		{verb, "_INBOX_local-root.x", rpc.Root, subject.Local},
		{verb, "_INBOX_scheduler-n.x", rpc.Scheduler, ""},
		{verb, "_INBOX_vault-n.x", "vault-n", ""},
		{subject.Svc("state", "status", "n"), "_INBOX_n.x", "n", ""},
	} {
		got := rpc.ActorFrom(c.asked, c.reply)
		if got.Name != c.name || got.Address != c.address {
			t.Errorf("on %s into %s: %+v, want %s from %q", c.asked, c.reply, got, c.name, c.address)
		}
		if person := c.name == rpc.Root || strings.HasPrefix(c.name, "user-"); got.Person() != person {
			t.Errorf("%s is a person: %v", c.name, got.Person())
		}
	}
	if a := rpc.ActorOf(context.Background()); a != (rpc.Actor{}) || a.Person() {
		t.Errorf("nobody asked: %+v", a)
	}
}

// A person's connection asks on a subject of its own, everybody else's on the bare one; the service answers both.
func TestAskOn(t *testing.T) {
	n := kvtest.Server(t)
	srv, err := rpc.NewServer(n.As(t, "state-n9"), rpc.Config{Name: "skep-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	verb, svc := subject.API("service", "inspect"), subject.Svc("state", "status", "n1")
	if err := rpc.Handle(srv, verb, func(ctx context.Context, _ *skepv1.Ref) (*skepv1.Ref, error) {
		return &skepv1.Ref{Ref: rpc.Asker(ctx) + " " + rpc.AskerAddress(ctx)}, nil
	}); err != nil {
		t.Fatal(err)
	}
	for identity, want := range map[string]string{"user-ada": "user-ada 127.0.0.1", "viewer.user-vic": "user-vic 127.0.0.1", "scheduler-n9": "scheduler ", "vault-n9": "vault-n9 ", "local-root": "root local"} {
		nc := n.As(t, identity)
		var r skepv1.Ref
		if err := rpc.Call(t.Context(), nc, verb, &skepv1.Ref{}, &r); err != nil || r.Ref != want {
			t.Errorf("%s: %q %v, want %q", identity, r.Ref, err, want)
		}
		if on := rpc.AskOn(nc, verb); (on != verb) != strings.Contains(identity, "user-") {
			t.Errorf("%s asks on %s", identity, on)
		}
		if on := rpc.AskOn(nc, svc); on != svc {
			t.Errorf("%s asks on %s", identity, on)
		}
	}
}

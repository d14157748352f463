package vault

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestWhoReadsAndChanges: what a user does with secrets, configs, tokens and other users is told with his name and address; a
// config's value is not given to who asks on the bare subject, where nobody's name is proven.
func TestWhoReadsAndChanges(t *testing.T) {
	c := start(t)
	c.serveState(t)
	heard, err := c.nc.SubscribeSync(subject.AllEvents)
	if err != nil {
		t.Fatal(err)
	}
	ada, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox(subject.Person("ada"))))
	if err != nil {
		t.Fatal(err)
	}
	defer ada.Close()
	conf, secret := skepv1.SecretKind_SECRET_KIND_CONFIG, skepv1.SecretKind_SECRET_KIND_SECRET
	spec := func(name string) *skepv1.SecretSpec { return &skepv1.SecretSpec{Name: name} }
	reader, err := seal.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	read := &skepv1.InspectSecretRequest{Ref: "conf", Reader: reader.Key()}
	steps := []struct {
		event string
		do    func() error
	}{
		{"config create conf", func() error {
			_, err := api.Call(ctx(t), ada, api.ConfigCreate, &skepv1.CreateSecretRequest{Spec: spec("conf"), Sealed: c.sealed(t, conf, "conf", 1, []byte("one"))})
			return err
		}},
		{"config update conf", func() error {
			_, err := api.Call(ctx(t), ada, api.ConfigUpdate, &skepv1.UpdateSecretRequest{Ref: "conf", Sealed: c.sealed(t, conf, "conf", 2, []byte("two"))})
			return err
		}},
		{"config read conf", func() error { _, err := api.Call(ctx(t), ada, api.ConfigInspect, read); return err }},
		{"config remove conf", func() error {
			_, err := api.Call(ctx(t), ada, api.ConfigRemove, &skepv1.RemoveSecretRequest{Ref: "conf"})
			return err
		}},
		{"secret create db", func() error {
			r, err := api.Call(ctx(t), ada, api.SecretCreate, &skepv1.CreateSecretRequest{Spec: spec("db"), Sealed: c.sealed(t, secret, "db", 1, []byte("one"))})
			if v := r.GetSecret().GetVersions(); err == nil && (v[0].Author != "user-ada" || v[0].AuthorAddress != subject.Local) {
				t.Errorf("version %v", v[0])
			}
			return err
		}},
		{"secret remove db", func() error {
			_, err := api.Call(ctx(t), ada, api.SecretRemove, &skepv1.RemoveSecretRequest{Ref: "db"})
			return err
		}},
		{"cluster token-read default", func() error {
			_, err := api.Call(ctx(t), ada, api.TokenGet, &skepv1.JoinTokenRequest{Role: skepv1.NodeRole_NODE_ROLE_WORKER})
			return err
		}},
		{"cluster token-rotate default", func() error {
			_, err := api.Call(ctx(t), ada, api.TokenGet, &skepv1.JoinTokenRequest{Role: skepv1.NodeRole_NODE_ROLE_WORKER, Rotate: true})
			return err
		}},
		{"user issue eve", func() error { c.issue(t, ada, "eve", time.Hour); return nil }},
		{"user revoke eve", func() error {
			_, err := api.Call(ctx(t), ada, api.UserRevoke, &skepv1.RevokeUserRequest{Ref: "eve"})
			return err
		}},
	}
	for _, s := range steps {
		if s.event == "config remove conf" {
			// Before it goes: nobody's name is proven on the bare subject.
			body, err := rpc.Encode(read, true)
			if err != nil {
				t.Fatal(err)
			}
			m, err := ada.Request(api.ConfigInspect.Subject(), body, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if err := rpc.ReplyError(m.Header); !fault.Is(err, fault.CodeDenied) {
				t.Errorf("a value is given to nobody in particular: %v", err)
			}
		}
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.event, err)
		}
		for {
			m, err := heard.NextMsg(10 * time.Second)
			if err != nil {
				t.Fatalf("%s: %v", s.event, err)
			}
			var e skepv1.Event
			if err := protojson.Unmarshal(m.Data, &e); err != nil {
				t.Fatal(err)
			}
			if e.Kind+" "+e.Verb+" "+e.Name != s.event {
				t.Errorf("event %v, want %s", &e, s.event)
				continue
			}
			if e.Actor != "user-ada" || e.Address != subject.Local {
				t.Errorf("%s names %q from %q", s.event, e.Actor, e.Address)
			}
			break
		}
	}
}

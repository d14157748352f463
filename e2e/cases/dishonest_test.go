package cases

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/e2e/lab"
	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// A worker that turned against the cluster has its own certificate, a NATS client, and all the time in the world. It gets
// what its own tasks refer to, and nothing else.
func TestADishonestWorkerGetsNoSecretOfOthers(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 3, Race: true})
	if r, err := c.RunInput(c.ctx, "m1", "value", "skep", "secret", "create", "theirs", "-"); err != nil || r.Code != 0 {
		t.Fatalf("%v %s", err, r.Stderr)
	}
	c.skep("service", "create", "--name", "victim", "--constraint", "node.hostname==w2", "--secret", "theirs", "busybox", "sleep", "100000")
	c.awaitRunning("victim", 1, time.Minute)
	victim := c.only("victim", 1)[0].ID

	open := func(host string) (*pki.Store, string) {
		h, err := c.Host(host)
		if err != nil {
			t.Fatal(err)
		}
		s, err := pki.Open(filepath.Join(h.Root(), "var/lib/skep/certs"))
		if err != nil {
			t.Fatal(err)
		}
		return s, s.Identity().NodeID
	}
	m1, err := c.Host("m1")
	if err != nil {
		t.Fatal(err)
	}
	w1, err := c.Host("w1")
	if err != nil {
		t.Fatal(err)
	}
	_, other := open("w2")
	mine, me := open("w1")
	refusals := make(chan error, 100)
	nc, err := nats.Connect(m1.IP+":2377", nats.SetCustomDialer(c.From(w1)), nats.Secure(pki.ClientTLS(mine)), nats.TLSHandshakeFirst(), nats.CustomInboxPrefix(subject.Inbox(me)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refusals <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()

	// What the broker lets nobody say or hear in another's place.
	refused := func(what string) {
		t.Helper()
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refusals:
			if !strings.Contains(err.Error(), "permissions violation") {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: it is let", what)
		}
	}
	for _, s := range []string{
		subject.Inbox(other) + ".>", subject.Push(other), subject.PushFiles(other), subject.Node(other, ">"), "$KV.secret.>", "$KV.value.>", "$KV.spec.>", "skep.v1.svc.vault.deliver.>", ">",
	} {
		if _, err := nc.SubscribeSync(s); err != nil {
			t.Fatal(err)
		}
		refused("subscribe to " + s)
	}
	for _, s := range []string{
		api.VaultDeliver.At(other).Subject(), api.FilesOfTasks.Subject(), api.SecretInspect.Subject(), api.SecretCreate.Subject(), "$JS.API.DIRECT.GET.KV_value.>", "$JS.API.STREAM.MSG.GET.KV_spec",
		"$KV.secret.curve", subject.PushFiles(other),
	} {
		if err := nc.PublishRequest(s, nc.NewInbox(), nil); err != nil {
			t.Fatal(err)
		}
		refused("publish to " + s)
	}

	// What the vault refuses, although the broker lets it through: the node's own subject.
	ask := func(a *skepv1.DeliverAsk) (*seal.Reader, *skepv1.DeliverRequest) {
		t.Helper()
		r, err := seal.NewReader()
		if err != nil {
			t.Fatal(err)
		}
		a.Reader = r.Key()
		req, err := seal.Ask(mine, a)
		if err != nil {
			t.Fatal(err)
		}
		return r, req
	}
	deliver := func(req *skepv1.DeliverRequest) (*skepv1.DeliverReply, error) {
		return api.Call(c.ctx, nc, api.VaultDeliver.At(me), req)
	}
	theirs := []*skepv1.DeliverTask{{TaskId: victim}}
	r, req := ask(&skepv1.DeliverAsk{NodeId: me, Generation: 1 << 60, Tasks: theirs})
	reply, err := deliver(req)
	if err != nil {
		t.Fatal(err)
	}
	d := &skepv1.Delivery{}
	if err := r.Open(mine.CA(), reply.Key, reply.Sealed, d); err != nil {
		t.Fatal(err)
	}
	if len(d.Values) != 0 || len(d.Tasks) != 1 || !strings.Contains(d.Tasks[0].Refused, "no such task on this node") {
		t.Errorf("asked for another node's task: %v", d)
	}
	_, as := ask(&skepv1.DeliverAsk{NodeId: other, Tasks: theirs})
	if _, err := deliver(as); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("asked in another node's name: %v", err)
	}
	_, creds := ask(&skepv1.DeliverAsk{NodeId: me, RegistryAuth: []string{"anything"}})
	if _, err := deliver(creds); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("asked for credentials of no task: %v", err)
	}
	altered := proto.CloneOf(req)
	altered.Ask = append(altered.Ask, 0x10, 1)
	if _, err := deliver(altered); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("an ask altered after it was signed: %v", err)
	}

	// An ask that was overheard, as a manager could: said again it is another node's, and the answer opens for nobody else.
	managers, _ := open("m1")
	spy, err := nats.Connect(m1.IP+":2377", nats.SetCustomDialer(c.From(m1)), nats.Secure(pki.ClientTLS(managers)), nats.TLSHandshakeFirst(), nats.CustomInboxPrefix("_INBOX_spy"))
	if err != nil {
		t.Fatal(err)
	}
	defer spy.Close()
	overheard := make(chan *nats.Msg, 16)
	for _, s := range []string{api.VaultDeliver.At(other).Subject(), subject.Near(api.VaultDeliver.At(other).Subject())} {
		if _, err := spy.ChanSubscribe(s, overheard); err != nil {
			t.Fatal(err)
		}
	}
	answers, err := spy.SubscribeSync(subject.Inbox(other) + ".>")
	if err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	c.skep("service", "update", "--force", "--detach", "victim")
	var msg *nats.Msg
	select {
	case msg = <-overheard:
	case <-time.After(time.Minute):
		t.Fatal("the node of the victim asked nobody")
	}
	again := &skepv1.DeliverRequest{}
	if err := proto.Unmarshal(msg.Data, again); err != nil {
		t.Fatal(err)
	}
	if _, err := deliver(again); !fault.Is(err, fault.CodeDenied) {
		t.Errorf("another node's ask said again: %v", err)
	}
	c.awaitRunning("victim", 1, time.Minute)

	// An answer that is to go to somebody else is not given at all.
	body, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	forged := &nats.Msg{Subject: api.VaultDeliver.At(me).Subject(), Reply: subject.Inbox(other) + ".forged", Header: msg.Header, Data: body}
	if err := nc.PublishMsg(forged); err != nil {
		t.Fatal(err)
	}
	if _, err := deliver(req); err != nil { // in order: the forged one has been seen to
		t.Fatal(err)
	}
	for {
		m, err := answers.NextMsg(200 * time.Millisecond)
		if err != nil {
			break
		}
		if strings.HasSuffix(m.Subject, ".forged") {
			t.Errorf("an answer went to the subject another node listens at: %d bytes", len(m.Data))
		}
	}
}

package bus

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

func TestWorkerCannotEscalate(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	mgr, js := inProcessJS(t, b, "manager")
	for _, n := range []string{"spec", "status", "task"} {
		if err := created(t, js, n); err != nil {
			t.Fatal(err)
		}
	}
	other, me := id.New(), id.New()
	if _, err := js.Publish(within(t), "$KV.status."+other, []byte("theirs")); err != nil {
		t.Fatal(err)
	}
	w := dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: me, Role: pki.Worker}, time.Hour), nats.Name("worker"))

	// The three escalations, as they were done.
	w.mustNotPublish("$KV.status."+me+".x", &nats.Msg{Header: nats.Header{"Nats-Rollup": {"all"}}})
	evil, err := json.Marshal(map[string]any{"stream_name": "KV_status", "config": map[string]any{
		"name": "x", "filter_subject": "$KV.status." + me, "deliver_subject": "skep.v1.api.service.rm", "ack_policy": "none",
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.mustNotPublish("$JS.API.CONSUMER.CREATE.KV_status.x.$KV.status."+me, &nats.Msg{Data: evil})
	w.mustNotPublish("$JS.API.CONSUMER.CREATE.KV_status."+other+".$KV.status."+me, &nats.Msg{Data: evil})

	for _, s := range []string{
		"$KV.spec.cluster", "$KV.status." + other, "$KV.task." + me,
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.KV_status", "$JS.API.STREAM.PURGE.KV_status", "$JS.API.STREAM.DELETE.KV_status",
		"$JS.API.STREAM.MSG.GET.KV_status", "$JS.API.DIRECT.GET.KV_status", "$JS.API.DIRECT.GET.KV_status.$KV.status." + other,
		"$JS.API.STREAM.SNAPSHOT.KV_status", "$JS.API.STREAM.CREATE.x", "$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE",
		"$JS.ACK.KV_status.x.1.1.1.1.1", "$JS.FC.KV_status.x", "$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.JSZ", "$SRV.PING",
		subject.API("service", "create"), subject.API("service", "list"), subject.API("node", "admit"), subject.API("token", "get"),
		subject.Join(me), subject.Join("join-" + other), subject.Svc("state", "status", other), subject.Svc("vault", "renew", other), subject.Heartbeat(other),
		subject.Push(me), subject.Push(other), subject.Net("node", me), subject.Net("ingress", me), subject.Event("node", me, "ready"), subject.Node(other, "exec.open"), subject.Node(me, "exec.open"),
		subject.IO(other, "s", "out"), subject.IO(me, "s", "in"), "_INBOX_" + other + ".x", "_INBOX.x", "anything", "skep.v1.log." + me + ".task",
	} {
		w.mustNotPublish(s, nil)
	}
	for _, s := range []string{
		">", "skep.>", "$KV.>", "$JS.>", "$SYS.>", "_INBOX.>", "_INBOX_" + other + ".>", "*.>", subject.AllAPI, subject.AllEvents, subject.AllHeartbeats,
		subject.Push("*"), subject.Push(other), subject.Node("*", "exec.open"), subject.Node(other, ">"), subject.Svc("vault", "renew", me),
		subject.Svc("state", "status", "*"), subject.Join("*"), subject.API("image", "resolve"), subject.IO(other, "*", "in"), subject.IO(me, "*", "out"),
	} {
		w.subscribe(s, false)
	}
	// What it is for still works.
	for _, s := range []string{
		subject.Heartbeat(me), subject.Svc("state", "status", me), subject.Svc("vault", "renew", me), subject.IO(me, "s", "out"),
		subject.IO(me, "s", "err"), subject.IO(me, "s", "ctl"),
	} {
		w.mustPublish(s)
	}
	for _, s := range []string{
		subject.Push(me), subject.Push(me) + ".more", subject.Net("node", "*"), subject.Node(me, "exec.open"), subject.Node(me, ">"), subject.IO(me, "*", "in"),
		subject.IO(me, "*", "cctl"), "_INBOX_" + me + ".>", "$SRV.PING", "$SRV.INFO.skep-agent",
	} {
		w.subscribe(s, true)
	}
	// A request to it may be answered, a few times: see repliesMost.
	both := make(chan struct{})
	if _, err := w.Subscribe(subject.Node(me, "stats"), func(m *nats.Msg) {
		for range repliesMost + 1 {
			_ = m.Respond([]byte("fine")) // the last must not arrive
		}
		close(both)
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.FlushTimeout(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	inbox := mgr.NewRespInbox()
	sub, err := mgr.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := mgr.PublishRequest(subject.Node(me, "stats"), inbox, nil); err != nil {
		t.Fatal(err)
	}
	if m, err := sub.NextMsg(10 * time.Second); err != nil || string(m.Data) != "fine" {
		t.Fatalf("no answer from the worker: %v", err)
	}
	<-both
	if !w.refused() {
		t.Error("a worker answers one request as often as it likes")
	}
	// Nothing happened to the store meanwhile.
	s, err := js.Stream(within(t), "KV_status")
	if err != nil {
		t.Fatal(err)
	}
	if st := s.CachedInfo().State; st.Msgs != 1 || st.LastSeq != 1 || st.Consumers != 0 {
		t.Fatalf("the status bucket was touched: %+v", st)
	}
	// The system account is closed to it, whatever user name it gives.
	w.mustNotSys(b, ca)
}

func (p *peer) mustNotSys(b *Bus, ca *pki.CA) {
	p.t.Helper()
	for _, ident := range []pki.Identity{
		{NodeID: id.New(), Role: pki.Worker}, {NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin},
	} {
		q := dial(p.t, b, pkitest.Store(p.t, ca, ident, time.Hour), nats.UserInfo(systemUser, ""), nats.Name(string(ident.Role)))
		q.mustNotPublish("$SYS.REQ.SERVER.PING", nil)
		q.subscribe("$SYS.>", false)
	}
	m := dial(p.t, b, pkitest.Store(p.t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour), nats.UserInfo(systemUser, ""))
	if _, err := m.Request("$SYS.REQ.SERVER.PING", nil, 10*time.Second); err != nil {
		p.t.Errorf("a manager has no system account: %v", err)
	}
}

func TestUsers(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	user := func(name, role string) *peer {
		return dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: "user-" + name, Role: pki.User, UserRole: role}, time.Hour), nats.Name(role))
	}
	admin, viewer := user("ada", pki.Admin), user("vic", pki.Viewer)
	node := id.New()
	for _, s := range []string{subject.IO(node, "s", "in"), "$SRV.PING"} {
		admin.mustPublish(s)
	}
	for _, s := range []string{subject.API("node", "admit"), subject.API("cluster", "init"), "$KV.spec.x", "$JS.API.INFO", subject.Heartbeat(node), subject.Push(node), subject.Join("join-" + node)} {
		admin.mustNotPublish(s, nil)
	}
	for s, want := range map[string]bool{
		subject.AllEvents: true, subject.IO("*", "*", "out"): true, "_INBOX_user-ada.>": true, "_INBOX_user-vic.>": false, "$KV.>": false, ">": false, "_INBOX.>": false,
		subject.API("service", "create"): false,
	} {
		admin.subscribe(s, want)
	}
	operator := user("ola", pki.Operator)
	for s, want := range map[string]bool{subject.AllEvents: true, "_INBOX_user-ola.>": true, "_INBOX_user-ada.>": false, "$KV.>": false, ">": false} {
		operator.subscribe(s, want)
	}
	for _, s := range []string{subject.IO(node, "s", "in"), "$KV.spec.x", "$JS.API.INFO", "$SRV.PING"} {
		viewer.mustNotPublish(s, nil)
	}
	viewer.subscribe(subject.AllSeen, true)
	viewer.subscribe(subject.AllEvents, false)
	viewer.subscribe(subject.IO("*", "*", "out"), false)
	// Answers are masked by the inbox they go to: a viewer hears those of viewers only, also of his own name.
	viewer.subscribe(subject.ViewerInbox("user-vic")+".>", true)
	for _, s := range []string{subject.Inbox("user-vic") + ".>", subject.ViewerInbox("user-ada") + ".>", "_INBOX_viewer.>", "_INBOX.>"} {
		viewer.subscribe(s, false)
	}
}

// TestWhoMayLookAtNetworks: a viewer sees what is stored of networks and what the mesh made of them, and the traffic
// counters of no node; nodes and strangers see neither and cannot answer in the managers' place.
func TestWhoMayLookAtNetworks(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	me, other := id.New(), id.New()
	peers := map[string]*peer{
		"admin":  dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour), nats.Name("admin")),
		"viewer": dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: "user-vic", Role: pki.User, UserRole: pki.Viewer}, time.Hour), nats.Name("viewer")),
		"worker": dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: me, Role: pki.Worker}, time.Hour), nats.Name("worker")),
		"joiner": stranger(t, b, ca),
	}
	for _, c := range []struct {
		who  string // who may publish it, of the four
		list []string
	}{
		{"admin viewer", []string{subject.API("mesh", "network"), subject.API("network", "list"), subject.API("network", "inspect")}},
		// Counters, state and traces are commands to a node, which viewers do not give (see Permissions).
		{"admin", []string{
			subject.Node(me, "mesh.counters"), subject.Node(me, "mesh.state"), subject.Node(me, "mesh.trace"), subject.Node(me, "mesh.applied"),
		}},
		// A node tells of itself alone.
		{"worker", []string{
			subject.Svc("mesh", "sync", me), subject.Svc("mesh", "lease", me), subject.Svc("mesh", "return", me), subject.Svc("mesh", "drain", me),
		}},
		{"", []string{
			subject.API("network", "create"), subject.API("cluster", "update"), // changes are asked for by name: TestRoles
			subject.API("mesh", "anything"), subject.API("mesh", "network.more"),
			subject.Svc("mesh", "sync", other), subject.Svc("mesh", "lease", other), subject.Svc("mesh", "return", other), subject.Svc("mesh", "drain", other),
			subject.Net("nodes", me), subject.Net("ingress", me), subject.Endpoint.Key("ingress." + me), subject.Endpoint.Key("net." + me),
		}},
	} {
		for who, p := range peers {
			for _, s := range c.list {
				if strings.Contains(c.who, who) {
					p.mustPublish(s)
				} else {
					p.mustNotPublish(s, nil)
				}
			}
		}
	}
	// Who answers: a node its own commands, managers the rest.
	for s, allowed := range map[string]string{
		subject.API("mesh", "network"): "", subject.API("*", "*"): "", subject.Svc("mesh", "lease", me): "",
		subject.Node(me, "mesh.counters"): "worker", subject.Node(other, "mesh.counters"): "", subject.Node("*", "mesh.counters"): "",
		subject.Net("ingress", "*"): "worker", subject.AllNet: "worker",
	} {
		for who, p := range peers {
			p.subscribe(s, who == allowed)
		}
	}
	// What a viewer asks is answered.
	mgr, err := b.InProcess("mesh")
	if err != nil {
		t.Fatal(err)
	}
	defer mgr.Close()
	if _, err := mgr.Subscribe(subject.API("mesh", "network"), func(m *nats.Msg) { _ = m.Respond([]byte("peers")) }); err != nil {
		t.Fatal(err)
	}
	if err := mgr.FlushTimeout(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if m, err := peers["viewer"].Request(subject.API("mesh", "network"), nil, 10*time.Second); err != nil || string(m.Data) != "peers" {
		t.Errorf("a viewer asks what the mesh made of a network: %v", err)
	}
}

// stranger is a connection without a certificate, as a node makes it that wants to join.
func stranger(t testing.TB, b *Bus, ca *pki.CA) *peer {
	t.Helper()
	p, err := tryStranger(t, b, ca, "join-"+id.New())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryStranger(t testing.TB, b *Bus, ca *pki.CA, name string, opts ...nats.Option) (*peer, error) {
	t.Helper()
	p := &peer{t: t, denied: make(chan error, 256), closed: make(chan struct{})}
	nc, err := nats.Connect("tls://"+b.ClientAddr().String(), append([]nats.Option{
		nats.Secure(pki.JoinTLS(pki.Digest(ca.Cert))), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.Timeout(10 * time.Second),
		nats.UserInfo(name, ""), nats.CustomInboxPrefix("_INBOX_" + strings.Trim(name, ".*>")), nats.Name("joiner"),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { p.denied <- err }),
		nats.ClosedHandler(func(*nats.Conn) { close(p.closed) })}, opts...)...)
	if err != nil {
		return nil, err
	}
	t.Cleanup(nc.Close)
	p.Conn = nc
	return p, nil
}

func TestConnectionsWithoutACertificate(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	for _, name := range []string{"", "sys", "local", "door", doorUser, "join-", "join-abc", "join-*", id.New(), "join-" + id.New() + ".>", "manager"} {
		if _, err := tryStranger(t, b, ca, name); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("connected as %q without a certificate: %v", name, err)
		}
	}
	p := stranger(t, b, ca)
	name := p.Opts.User
	if err := p.Publish(subject.Join(name), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.SubscribeSync("_INBOX_" + name + ".>"); err != nil {
		t.Fatal(err)
	}
	if p.refused() {
		t.Error("a joiner may not ask")
	}
	if _, err := tryStranger(t, b, ca, name); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a joiner's name was given a second time: %v", err)
	}
	for _, s := range []string{
		subject.API("service", "list"), subject.Heartbeat("x"), "$KV.secret.ca", "$SRV.PING", "$JS.API.INFO", "skep.v1.join", subject.Join("join-" + id.New()), subject.Join(name) + ".x",
	} {
		p.mustNotPublish(s, nil)
	}
	for _, s := range []string{">", subject.Join("*"), subject.Join(name), "_INBOX_join-" + id.New() + ".>", "_INBOX.>", "_INBOX_*.>"} {
		p.subscribe(s, false)
	}
}

func TestForeignAndExpiredCertificates(t *testing.T) {
	ca, foreign := pkitest.NewCA(t), pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	node := pki.Identity{NodeID: id.New(), Role: pki.Worker}

	// Another cluster's node: neither side trusts the other.
	if _, err := tryDial(t, b, pkitest.Store(t, foreign, node, time.Hour)); err == nil {
		t.Error("a node of another cluster was let in")
	}
	// The same, by a client that does not care who the server is.
	creds := pkitest.Store(t, foreign, node, time.Hour)
	blind := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*creds.Certificate()}}
	if _, err := tryDial(t, b, creds, nats.Secure(blind)); err == nil {
		t.Error("a certificate of another CA was let in")
	}
	// A CA of one's own making that carries the cluster's name.
	forged, err := pki.NewCA(ca.ClusterID())
	if err != nil {
		t.Fatal(err)
	}
	creds = pkitest.Store(t, forged, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	blind = &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*creds.Certificate()}}
	if _, err := tryDial(t, b, creds, nats.Secure(blind)); err == nil {
		t.Error("a forged CA was let in")
	}
	// TLS below 1.3.
	old := pki.ClientTLS(pkitest.Store(t, ca, node, time.Hour))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := tryDial(t, b, pkitest.Store(t, ca, node, time.Hour), nats.Secure(old)); err == nil {
		t.Error("TLS 1.2 was let in")
	}

	// An expired one is not let in, and one that expires is closed.
	if _, err := tryDial(t, b, pkitest.Store(t, ca, node, -time.Minute)); err == nil {
		t.Error("an expired certificate was let in")
	}
	p := dial(t, b, pkitest.Store(t, ca, node, 4*time.Second))
	select {
	case <-p.closed:
	case <-time.After(30 * time.Second):
		t.Error("the connection outlived its certificate")
	}
}

func TestRemovedNodeIsDisconnected(t *testing.T) {
	for name, end := range map[string]func(b *Bus, node string) int{
		"by name": (*Bus).Disconnect,
		"swept":   func(b *Bus, _ string) int { return b.Sweep() },
	} {
		t.Run(name, func(t *testing.T) { removedNode(t, end) })
	}
}

func removedNode(t *testing.T, end func(*Bus, string) int) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	gone, stays := id.New(), id.New()
	var removed atomic.Bool
	// As from a list of nodes: whoever is not on it is revoked. Users are not on it.
	cfg.Revoked = func(n string) bool { return n != cfg.NodeID && n != stays && (n != gone || removed.Load()) }
	b := run(t, cfg)
	creds := pkitest.Store(t, ca, pki.Identity{NodeID: gone, Role: pki.Worker}, time.Hour)
	p, q := dial(t, b, creds), dial(t, b, creds)
	others := []*peer{
		dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: stays, Role: pki.Worker}, time.Hour)),
		dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}, time.Hour)),
	}
	agent, err := b.InProcess("agent")
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	removed.Store(true)
	if n := end(b, gone); n != 2 {
		t.Errorf("%d of 2 connections ended", n)
	}
	for _, x := range []*peer{p, q} {
		select {
		case <-x.closed:
		case <-time.After(30 * time.Second):
			t.Error("a removed node is still connected")
		}
	}
	if _, err := tryDial(t, b, creds); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a removed node was let in again: %v", err)
	}
	for _, o := range others {
		if err := o.FlushTimeout(10 * time.Second); err != nil {
			t.Errorf("%s lost its connection: %v", o.Opts.InboxPrefix, err)
		}
	}
	if err := agent.FlushTimeout(10 * time.Second); err != nil || agent.Stats().Reconnects > 0 {
		t.Errorf("the manager's own agent lost its connection: %v", err)
	}
}

func TestInProcessConnections(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	_, js := inProcessJS(t, b, "manager")
	for _, n := range []string{"spec", "task", "secret", "node", "lease"} {
		if err := created(t, js, n); err != nil {
			t.Fatal(err)
		}
	}
	may := map[string]string{"state": "$KV.spec.x", "scheduler": "$KV.task.x", "vault": "$KV.secret.x", "health": "$KV.node.live.x", "mesh": "$KV.lease.mesh"}
	for name := range may {
		nc, err := b.InProcess(name)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		njs, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		for owner, key := range may {
			wait := 200 * time.Millisecond // for an answer that must not come
			if owner == name {
				wait = 20 * time.Second
			}
			_, err := nc.Request(key, []byte(name), wait)
			if allowed := err == nil; allowed != (owner == name) {
				t.Errorf("%s writes %s: %v", name, key, err)
			}
		}
		if _, err := njs.Stream(within(t), "KV_spec"); err != nil {
			t.Errorf("%s cannot read: %v", name, err)
		}
	}
	if _, err := b.InProcess("nobody"); err == nil {
		t.Error("an unknown service was connected")
	}

	// Local root comes through a pipe without the password: an admin, whatever it calls itself.
	for _, name := range []string{"", "sys", "manager", "vault"} {
		p := &peer{t: t, denied: make(chan error, 256)}
		nc, err := nats.Connect("", nats.InProcessServer(b), nats.UserInfo(name, "guess"), nats.NoReconnect(), nats.Name("local root as "+name),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { p.denied <- err }))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		p.Conn = nc
		p.mustPublish(subject.API("service", "create"))
		p.subscribe("_INBOX.>", true)
		p.subscribe("$SYS.>", false)
		for _, s := range []string{"$KV.spec.x", "$JS.API.INFO", "$SYS.REQ.SERVER.PING", subject.API("node", "admit")} {
			p.mustNotPublish(s, nil)
		}
	}

	// The manager's own agent is a worker that also resolves images.
	a, err := b.InProcess("agent")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.SubscribeSync(subject.API("image", "resolve")); err != nil {
		t.Fatal(err)
	}
	if err := a.FlushTimeout(10 * time.Second); err != nil || a.LastError() != nil {
		t.Errorf("the manager's agent may not resolve images: %v, %v", err, a.LastError())
	}
}

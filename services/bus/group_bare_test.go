package bus

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// bare makes a witness of a member that has not started.
func (f *fleet) bare(name string) {
	m := f.members[name]
	m.cfg.TLS = pkitest.Store(f.t, f.ca, pki.Identity{NodeID: m.cfg.NodeID, Role: pki.Witness}, time.Hour)
	f.witness = map[string]bool{m.cfg.NodeID: true}
}

// ledBy are the streams, and "" for the group itself, that a server leads.
func (f *fleet) ledBy(srv string) (out []string) {
	js, err := jetstream.New(f.nc)
	if err != nil {
		f.t.Fatal(err)
	}
	l := js.ListStreams(within(f.t))
	for s := range l.Info() {
		if s.Cluster != nil && s.Cluster.Leader == srv {
			out = append(out, s.Config.Name)
		}
	}
	for _, v := range f.list().GetViews() {
		if v.GetLeader() && strings.HasPrefix(srv, v.GetNodeId()) {
			out = append(out, "")
		}
	}
	return out
}

// Two managers and a witness: either manager may go, and the witness too. It leads nothing for long, and root of its machine
// has no socket.
func TestTwoManagersAndAWitness(t *testing.T) {
	f := found(t, "m2", "w1")
	f.bare("w1")
	w1 := f.members["w1"]
	f.role("w1", true)
	w1.start()
	f.await(1, true, "m1-1", "w1-1") // the store is with the one manager, and so is the third vote
	for _, m := range f.list().GetSet().GetManagers() {
		if m.GetBare() != (m.GetNodeId() == idOf("w1")) || m.GetBare() && m.GetWitness() != "" {
			t.Errorf("in the set is %v", m)
		}
	}
	f.role("m2", true)
	f.members["m2"].start()
	f.await(3, false, "m1-1", "m2-1", "w1-1")
	if _, err := os.Stat(w1.cfg.DataDir + ".sock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of local root: %v", err)
	}

	// What it is made to lead, it gives up.
	js, err := jetstream.New(f.nc)
	if err != nil {
		t.Fatal(err)
	}
	to, sysTo := []byte(`{"placement":{"preferred":"`+named("w1-1")+`"}}`), server.JSApiLeaderStepDown
	if err := request(within(t), f.nc, "$JS.API.STREAM.LEADER.STEPDOWN.KV_"+string(subject.Spec), to); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"m1", "m2"} {
		_ = request(within(t), f.members[m].m.system(), sysTo, to) // only one of them may lead
	}
	f.said("a witness gave up what it led")
	if err := await(within(t), 100*time.Millisecond, patience, func() bool { return len(f.ledBy(named("w1-1"))) == 0 }); err != nil {
		t.Errorf("it still leads %v", f.ledBy(named("w1-1")))
	}

	write := func(what string) {
		t.Helper()
		began := time.Now()
		err := again(within(t), func(ctx context.Context) error {
			_, err := js.Publish(ctx, "$KV."+string(subject.Spec)+".node."+idOf("writer"), []byte{})
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%s: a write after %s", what, time.Since(began).Round(10*time.Millisecond))
	}
	for _, away := range []string{"w1", "m2"} {
		f.members[away].stop()
		write("without " + away)
		f.members[away].start()
		f.await(3, false, "m1-1", "m2-1", "w1-1")
	}

	// The other manager goes for good: the data stays with the manager, not with the witness.
	f.role("m2", false)
	f.members["m2"].retired()
	f.await(1, true, "m1-1", "w1-1")
	if led := f.ledBy(named("w1-1")); len(led) > 0 {
		t.Errorf("the only copy of %v is the witness's", led)
	}
	f.role("w1", false)
	if err := w1.end(); !errors.Is(err, ErrRetired) {
		t.Errorf("the witness ended with %v", err)
	}
	f.await(1, true, "m1-1")
}

// What a node joined as is in its certificate and in its record, and the two must be the same.
func TestNoWitnessTurnsIntoAManager(t *testing.T) {
	f := found(t, "m2", "m3")
	f.bare("m2")
	f.witness = map[string]bool{idOf("m3"): true}
	for _, n := range []string{"m2", "m3"} {
		f.role(n, true)
		f.members[n].run()
		if err := f.members[n].end(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "asks to be let in as a") {
			t.Errorf("%s: %v", n, err)
		}
	}
	cfg := lone(t, f.ca, id.New())
	cfg.TLS = pkitest.Store(t, f.ca, pki.Identity{NodeID: cfg.NodeID, Role: pki.Witness}, time.Hour)
	cfg.Found = true
	if _, err := NewManager(cfg, cfg.DataDir+".sock"); err == nil {
		t.Error("a witness founds a group")
	}
}

// A witness's certificate, used at the port for nodes, lets it ask what it has to ask in its own name, and no more.
func TestWhatAWitnessMay(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	me, other := id.New(), id.New()
	p := dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: me, Role: pki.Witness}, time.Hour))
	for _, s := range []string{
		subject.Heartbeat(me), subject.Svc("state", "describe", me), subject.Svc("state", "managers", me), subject.Svc("vault", "renew", me), subject.Svc("vault", "trust", me),
		subject.Svc("bus", "enlist", me), subject.API("manager", "list"),
	} {
		p.mustPublish(s)
	}
	for _, s := range []string{
		subject.Heartbeat(other), subject.Svc("vault", "renew", other), subject.Svc("vault", "master", me), subject.Svc("vault", "deliver", me),
		subject.Svc("state", "snapshot", me), subject.Svc("state", "status", me), subject.ManagerBeat(me), subject.API("service", "create"),
		"$JS.API.STREAM.NAMES", "$KV." + string(subject.Spec) + ".node." + me, "$SYS.REQ.SERVER.PING", subject.Node(other, "x"),
	} {
		p.mustNotPublish(s, nil)
	}
	for s, may := range map[string]bool{
		subject.Push(me) + ".role": true, subject.Node(me, "ca.renew"): true,
		subject.AllHeartbeats: false, subject.AllEvents: false, subject.AllNet: false, subject.Push(other) + ".role": false, ">": false, subject.Node(other, "x"): false,
	} {
		p.fresh().subscribe(s, may)
	}
	// The names of a manager's services mean nothing in its mouth.
	for _, user := range []string{"manager", "state", "vault", systemUser} {
		q, err := tryDial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: me, Role: pki.Witness}, time.Hour), nats.UserInfo(user, ""))
		if err != nil {
			continue
		}
		q.mustNotPublish("$JS.API.STREAM.NAMES", nil)
		q.Close()
	}
}

// A witness hands over only what a manager that is there can take, and never the other way.
func TestPlanHandsOver(t *testing.T) {
	three := func() (*world, *view) {
		w := newWorld("a", "b", "f")
		w.servers = map[string]*fakeServer{}
		w.set = &skepv1.ManagerSet{Replicas: 3, Used: map[string]uint32{"a": 1, "b": 1, "f": 1}, Epoch: 1}
		w.replicas = 3
		for _, n := range []string{"a", "b", "f"} {
			w.set.Managers = append(w.set.Managers, &skepv1.Manager{NodeId: n, Server: n + "-1", State: voter, Addr: n + ":1", Route: n + ":2", Bare: n == "f"})
			w.servers[n+"-1"] = &fakeServer{node: n, up: true, data: true, current: true}
		}
		v := w.view()
		v.streams.led = map[string][]string{}
		return w, v
	}
	is := func(what string, v *view, want string) {
		t.Helper()
		if p := planGroup(v); p.do != want || want != "" && p.server != "f-1" {
			t.Errorf("%s: %v", what, p)
		}
	}
	_, v := three()
	is("nothing to do", v, "")
	v.streams.led = map[string][]string{"f-1": {"KV_spec"}}
	is("it leads a stream", v, actHandOver)
	v.streams.led = map[string][]string{"a-1": {"KV_spec"}}
	is("a manager leads it", v, "")
	v.members[slices.IndexFunc(v.members, func(m Member) bool { return m.Name == "f-1" })].Leader = true
	is("it leads the group", v, actHandOver)
	_, v = three()
	v.streams.led = map[string][]string{"f-1": {"KV_spec"}}
	v.streams.on = map[string][]string{"f-1": {"KV_spec"}}
	is("nobody else has that stream", v, "")

	// Of two managers one is lost for good: what stays of the data stays with the other.
	w, _ := three()
	w.set.Managers, w.set.Replicas = w.set.Managers[1:], 3
	delete(w.servers, "a-1")
	w.servers["b-w2"] = &fakeServer{node: "b", witness: true, up: true, current: true}
	w.set.Managers[0].Witness = "b-w2"
	w.desired = map[string]bool{"b": true, "f": true}
	v = w.view()
	v.streams.led = map[string][]string{"f-1": {"KV_spec"}}
	is("before the copies go", v, actHandOver)

	// And it does not go while only the witness would stay.
	w.desired = map[string]bool{"f": true}
	v = w.view()
	if l, why := v.nextToLeave(); l != nil || !strings.Contains(why, "last manager") {
		t.Errorf("the last manager leaves: %v %q", l, why)
	}
}

package health

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	"skep.dev/services/health-monitor/internal/verdict"
)

// bench is a service of members a, b and w, all Ready, without its loop and without a bus.
func bench() *Service {
	now := time.Now()
	s := &Service{
		log: zap.NewNop(), core: verdict.New(Limits{}, now), members: map[string]string{}, hosts: map[string]string{}, record: map[string]stored{}, dirty: map[string]bool{},
		paths: map[string]path{}, pathLife: pathLife, pathEvery: pathEvery,
	}
	for _, id := range []string{"a", "b", "w"} {
		s.members[id] = "host-" + id
		s.core.Admit(id, nil, now)
		s.core.Beat(id, "s", false, now)
	}
	return s
}

func (s *Service) says(t testing.TB, from string, r *skepv1.MeshPathReport) {
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	s.hear(&nats.Msg{Subject: subject.Path(from), Data: b})
}

func blocked(ids ...string) *skepv1.MeshPathReport {
	r := &skepv1.MeshPathReport{}
	for _, id := range ids {
		r.Blocked = append(r.Blocked, &skepv1.BlockedPeer{NodeId: id, Hostname: "\x1b[2Jyour bank"})
	}
	return r
}

// row is what the record of a node says.
func (s *Service) row(id string) string {
	live := s.verdict(id)
	out := spec.Word(live.GetState())
	for _, b := range live.GetBlocked() {
		out += " " + b.NodeId + "=" + b.Hostname
	}
	return out + strings.Repeat("+", int(live.GetBlockedMore()))
}

// Whoever says that it does not reach others is the one that looks bad, under names that the cluster gave.
func TestALiarLooksBadItself(t *testing.T) {
	s := bench()
	s.says(t, "w", blocked("a", "b", "a", "w", "nobody", strings.Repeat("x", 5000)))
	for id, want := range map[string]string{"a": "ready", "b": "ready", "w": "ready a=host-a b=host-b"} {
		if got := s.row(id); got != want {
			t.Errorf("the row of %s is %q, want %q", id, got, want)
		}
	}
	s.says(t, "stranger", blocked("a"))
	if len(s.paths) != 1 {
		t.Errorf("a stranger is heard: %v", s.paths)
	}
	var many []string
	for i := range 5000 {
		id := fmt.Sprint("n", i)
		s.members[id] = ""
		many = append(many, id)
	}
	s = bench()
	for _, id := range many {
		s.members[id] = ""
	}
	if s.says(t, "w", blocked(many...)); len(s.paths["w"].blocked) != maxBlocked {
		t.Errorf("%d peers of a report are kept", len(s.paths["w"].blocked))
	}
}

// A node that changes its mind all the time changes its record now and then.
func TestReportsHaveAPace(t *testing.T) {
	s := bench()
	changes := 0
	for i := range 1000 {
		before := s.row("w")
		if i%2 == 0 {
			s.says(t, "w", blocked("a"))
		} else {
			s.says(t, "w", blocked())
		}
		if s.row("w") != before {
			changes++
		}
	}
	if changes != 1 {
		t.Errorf("1000 reports at once changed the record %d times", changes)
	}
	p := s.paths["w"]
	p.since = p.since.Add(-pathEvery)
	s.paths["w"] = p
	if s.says(t, "w", blocked()); s.row("w") != "ready" {
		t.Errorf("later it is %q", s.row("w"))
	}
}

// One node's flood leaves room for the others' words.
func TestAFloodIsOneNodesOwn(t *testing.T) {
	g := newGate("heartbeats", zap.NewNop(), 1000)
	now := time.Unix(1000, 0)
	say := func(node string, size int) bool {
		before := len(g.out)
		g.take(&nats.Msg{Subject: subject.Heartbeat(node), Data: make([]byte, size)}, now)
		return len(g.out) > before
	}
	heard := 0
	for range 100_000 {
		if say("w", 40) {
			heard++
		}
	}
	if heard != mostWords || !say("a", 40) || g.lost.Load() != 0 {
		t.Errorf("%d of a flood are heard", heard)
	}
	if say("b", maxWord+1) || !say("b", maxWord) {
		t.Error("size")
	}
	now = now.Add(time.Second)
	if !say("w", 40) {
		t.Error("it is not heard any more")
	}
	for i := range 2000 {
		say(fmt.Sprint("n", i), 40)
	}
	if len(g.out) != 1000 || g.lost.Load() == 0 {
		t.Errorf("%d wait, %d are lost", len(g.out), g.lost.Load())
	}
	if len(g.told) != 2 {
		t.Errorf("told of %v", g.told)
	}
}

// A worker sends heartbeats as fast as it can: nobody else goes down.
func TestAFloodOfHeartbeatsTakesNobodyElseDown(t *testing.T) {
	f := newField(t)
	f.admit("a", "b", "c", "w")
	f.beat("a", "b", "c", "w")
	f.start("m1", f.n.Conn(t))
	f.await(readyS, "a", "b", "c", "w")
	nc := f.n.Conn(t)
	raw, err := proto.Marshal(&skepv1.Heartbeat{NodeId: "a", Session: strings.Repeat("s", 100)})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 * beats { // more than there is room for
		if err := nc.Publish(subject.Heartbeat("w"), raw); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	f.silence("b")
	f.await(downS, "b") // which is found all the same, and time has passed
	for _, id := range []string{"a", "c"} {
		if st := f.get(id).GetState(); st != readyS {
			t.Errorf("%s is %v", id, st)
		}
	}
}

// Whatever a node reports of its paths: others' rows stay, and its own names members alone.
func FuzzPathReport(f *testing.F) {
	for _, r := range []*skepv1.MeshPathReport{{}, blocked("a", "b"), blocked("w", "x", "")} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := bench()
		s.hear(&nats.Msg{Subject: subject.Path("w"), Data: raw})
		s.expirePaths(time.Now())
		s.accused("a")
		if s.row("a") != "ready" || s.row("b") != "ready" {
			t.Errorf("%q, %q", s.row("a"), s.row("b"))
		}
		for _, b := range s.verdict("w").GetBlocked() {
			if b.Hostname != "host-"+b.NodeId {
				t.Errorf("named: %v", b)
			}
		}
	})
}

package health

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/subject"
)

// report is what a mesh says of the peers it does not reach.
func (f *field) report(from string, blocked ...string) {
	r := &skepv1.MeshPathReport{NodeId: from}
	for _, b := range blocked {
		r.Blocked = append(r.Blocked, &skepv1.BlockedPeer{NodeId: b, Hostname: "host-" + b})
	}
	b, err := proto.Marshal(r)
	if err == nil {
		err = f.nc.Publish(subject.Path(from), b)
	}
	if err != nil {
		f.t.Error(err)
	}
}

// blocked is what a node's record says of its data path.
func (f *field) blocked(id string) string {
	var names []string
	for _, b := range f.get(id).GetBlocked() {
		names = append(names, b.Hostname)
	}
	out := strings.Join(names, " ")
	if more := f.get(id).GetBlockedMore(); more > 0 {
		out += fmt.Sprintf(" +%d", more)
	}
	return out
}

func (f *field) awaitBlocked(id, want string) {
	f.t.Helper()
	f.until(fmt.Sprintf("%s does not reach %q (it says %q)", id, want, f.blocked(id)), func() bool { return f.blocked(id) == want })
}

func (f *field) saw(part string) func() bool {
	return func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range f.events {
			if strings.Contains(e, part) {
				return true
			}
		}
		return false
	}
}

func TestBlockedPath(t *testing.T) {
	f := newField(t)
	f.admit("a", "b", "c")
	f.beat("a", "b", "c")
	stop := f.start("m1", f.n.Conn(t))
	f.await(readyS, "a", "b", "c")
	f.report("a", "b", "c", "stranger")
	f.awaitBlocked("a", "host-b host-c")
	f.until("event", f.saw("host-a path-blocked"))
	f.report("nobody", "a")

	// A peer that is down is not the path's fault; the row of a node that is down says nothing of its path.
	f.silence("c")
	f.await(downS, "c")
	f.awaitBlocked("a", "host-b")
	f.report("b", "a")
	f.awaitBlocked("b", "host-a")
	f.silence("b")
	f.await(downS, "b")
	f.awaitBlocked("b", "")
	f.awaitBlocked("a", "")

	// A new leader takes over what the record says, and the mesh's word ends it.
	f.beat("b")
	f.await(readyS, "b")
	f.report("a", "b")
	f.awaitBlocked("a", "host-b")
	stop()
	f.start("m2", f.n.Conn(t))
	f.report("a")
	f.awaitBlocked("a", "")
	f.until("event", f.saw("host-a path-open"))

	// A word that is not said again does not stand for ever.
	f.report("a", "b")
	f.awaitBlocked("a", "host-b")
	f.awaitBlocked("a", "")
}

func TestManyBlockedPeers(t *testing.T) {
	f := newField(t)
	var ids []string
	for i := range 12 {
		ids = append(ids, fmt.Sprintf("n%02d", i))
	}
	f.admit(ids...)
	f.beat(ids...)
	f.start("m1", f.n.Conn(t))
	f.await(readyS, ids...)
	f.report("n00", ids[1:]...)
	f.awaitBlocked("n00", "host-n01 host-n02 host-n03 host-n04 host-n05 host-n06 host-n07 host-n08 +3")
}

func TestMetrics(t *testing.T) {
	f := newField(t)
	f.admit("a", "b", "late")
	f.beat("a", "b")
	s, err := New(Config{NC: f.n.Conn(t), NodeID: "m1", LeaseTTL: time.Second, Limits: Limits{Grace: 2 * time.Second}, Metrics: f.metrics})
	if err != nil {
		t.Fatal(err)
	}
	f.run(s)
	f.await(readyS, "a", "b")
	f.await(downS, "late")
	f.until("metrics", func() bool {
		return f.value("skep_health_nodes", "ready") == 2 && f.value("skep_health_nodes", "down") == 1 && f.value("skep_health_nodes", "unknown") == 0 &&
			f.value("skep_health_heartbeats_total", "") > 2 && f.value("skep_health_leading", "") == 1 && f.value("skep_health_nodes_path_blocked", "") == 0
	})
}

// value scrapes one metric; label is its only label's value.
func (f *field) value(name, label string) float64 {
	f.t.Helper()
	all, err := f.metrics.(*prometheus.Registry).Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, family := range all {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

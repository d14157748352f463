package doctor

import (
	"errors"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestClaimFindings(t *testing.T) {
	old := testNow.Add(-day).UnixMilli()
	node := &skepv1.Node{Meta: &skepv1.Meta{Id: "n1"}, Description: &skepv1.NodeDescription{Hostname: "w1"}}
	for _, x := range []struct {
		claim *skepv1.VolumeClaim
		want  string
	}{
		{&skepv1.VolumeClaim{NodeId: "n1", State: "in use", TaskIds: []string{"t"}}, "1 volume with a single writer, each where its tasks are"},
		{&skepv1.VolumeClaim{NodeId: "n1", State: "lost"}, "1 volume with a single writer, each where its tasks are"}, // nobody waits
		{&skepv1.VolumeClaim{NodeId: "n1", State: "lost", WaitingTaskIds: []string{"t"}}, "it is held by node w1, which does not answer, while tasks wait for it: 1: `skep node fence w1` once it is certainly off"},
		{&skepv1.VolumeClaim{NodeId: "n9", State: "lost"}, "it is held by node w1, which was removed: `skep volume release --driver rexray data` once that machine is certainly off"},
		{&skepv1.VolumeClaim{NodeId: "n1", State: "releasing", WaitingTaskIds: []string{"t", "u"}}, "none of node w1's tasks needs it, and the node has not unmounted it, while tasks wait for it: 2: look at `skep volume inspect` and at the plug-in there"},
	} {
		x.claim.Driver, x.claim.Name, x.claim.NodeHostname, x.claim.SinceUnixMs = "rexray", "data", "w1", old
		d := &exam{Picture: Picture{Now: testNow, Claims: []*skepv1.VolumeClaim{x.claim}, After: Stored{Nodes: []*skepv1.Node{node}}}}
		if d.claims(); len(d.out) != 1 || d.out[0].Text != x.want {
			t.Errorf("%v: %v, want %q", x.claim, d.out, x.want)
		}
	}
	d := &exam{}
	if d.claims(); len(d.out) != 0 {
		t.Errorf("without volumes: %v", d.out)
	}
	d.ClaimsErr = errors.New("nobody answers")
	if d.claims(); len(d.out) != 1 || d.out[0].Status != Warn {
		t.Errorf("without an answer: %v", d.out)
	}
}

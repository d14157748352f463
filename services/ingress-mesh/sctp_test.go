package mesh

import (
	"strings"
	"testing"

	"skep.dev/libs/sctp"
	skepv1 "skep.dev/proto/skep/v1"
)

func TestSCTPFindings(t *testing.T) {
	here, there := &skepv1.MeshBackendState{TaskId: "t1", NodeId: "me"}, &skepv1.MeshBackendState{TaskId: "t2", NodeId: "other"}
	port := func(protocol string, b ...*skepv1.MeshBackendState) *skepv1.MeshPortState {
		return &skepv1.MeshPortState{Protocol: protocol, Port: 5060, Backends: b}
	}
	onHost := port("sctp", &skepv1.MeshBackendState{TaskId: "t3"})
	onHost.HostMode = true
	for name, x := range map[string]struct {
		ports  []*skepv1.MeshPortState
		kernel sctp.Ability
		want   string // severities and subjects
	}{
		"can":                    {[]*skepv1.MeshPortState{port("sctp", here, there)}, sctp.Ability{Tracked: true, Sockets: true}, ""},
		"cannot, nobody asks":    {[]*skepv1.MeshPortState{port("tcp", here), port("udp", here)}, sctp.Ability{}, ""},
		"no sockets, task here":  {[]*skepv1.MeshPortState{port("sctp", there, here, here)}, sctp.Ability{Tracked: true}, "warning port 5060/sctp t1"},
		"no sockets, host mode":  {[]*skepv1.MeshPortState{onHost}, sctp.Ability{Tracked: true}, "warning port 5060/sctp t3"},
		"no sockets, none here":  {[]*skepv1.MeshPortState{port("sctp", there)}, sctp.Ability{Tracked: true}, ""},
		"no tracking, none here": {[]*skepv1.MeshPortState{port("sctp", there)}, sctp.Ability{Sockets: true}, "error port 5060/sctp"},
		"nothing":                {[]*skepv1.MeshPortState{port("sctp", here)}, sctp.Ability{}, "error port 5060/sctp, warning port 5060/sctp t1"},
	} {
		var got []string
		for _, f := range sctpFindings(x.ports, "me", x.kernel) {
			line := f.Severity + " " + f.Subject
			if _, after, ok := strings.Cut(f.Text, "and task "); ok {
				task, _, _ := strings.Cut(after, " ")
				line += " " + task
			}
			got = append(got, line)
		}
		if s := strings.Join(got, ", "); s != x.want {
			t.Errorf("%s: %q, want %q", name, s, x.want)
		}
	}
}

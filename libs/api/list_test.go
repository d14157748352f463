package api

import (
	"fmt"
	"strings"
	"testing"

	"skep.dev/libs/doctest"
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// table is the list as docs/contracts.md shows it.
func table() string {
	var b strings.Builder
	b.WriteString("| subject | served by | request → reply | effect | asked by |\n|---|---|---|---|---|\n")
	for _, v := range verbs {
		place := "<node>"
		if v.Callers == Joiners {
			place = "<joiner>"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s → %s | %s | %s |\n", strings.Replace(v.Subject, "*", place, 1), v.Service,
			v.Request.Descriptor().Name(), v.Reply.Descriptor().Name(), v.Does(), v.Callers)
	}
	b.WriteString("\n| published, not answered | by | message |\n|---|---|---|\n")
	for _, a := range Announcements {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", a.Subject, a.From, a.Message.Descriptor().Name())
	}
	return b.String()
}

func TestContractsShowTheList(t *testing.T) { doctest.Table(t, "libs/api", table()) }

func TestEachVerbOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range All() {
		if seen[v.Subject] {
			t.Errorf("%s is in the list twice", v.Subject)
		}
		seen[v.Subject] = true
		if Of(v.Subject) != v || Of(subject.By(v.Subject, "user-ada", subject.Local)) != v && subject.ByAnybody(v.Subject) != "" {
			t.Errorf("%s leads to another verb", v.Subject)
		}
		// What it writes is the record of the asker's own certificate, whose key signs the request.
		own := v == UserExchange.Verb
		if v.Effect == Writes && v.Callers == Viewers && !own {
			t.Errorf("viewers may write: %s", v.Subject)
		}
		if at := strings.Contains(v.Subject, ".svc."); at != (v.Callers == Nodes) {
			t.Errorf("%s is asked by %s", v.Subject, v.Callers)
		}
	}
	if ServiceCreate.Subject() != "skep.v1.api.service.create" || StateStatus.At("n").Subject() != "skep.v1.svc.state.status.n" || MeshState.Subject() != "skep.v1.node.*.mesh.state" {
		t.Error(ServiceCreate.Subject(), StateStatus.At("n").Subject(), MeshState.Subject())
	}
	for _, s := range []string{"skep.v1.api.service", "skep.v1.api.service.create.x", "skep.v1.svc.state.status", "skep.v1.node.n.mesh", "", subject.Heartbeat("n")} {
		if v := Of(s); v != nil {
			t.Errorf("%q is %s", s, v.Subject)
		}
	}
}

// A verb that is added is in the table, and leads nowhere without a node where it is asked of one.
func TestAVerbIsAdded(t *testing.T) {
	was := verbs
	defer func() { verbs = was }()
	fresh := ForPeople[*pb.Ref, *pb.ServiceReply]("state", "service.polish", Writes, Admins)
	if want := "| `skep.v1.api.service.polish` | state | Ref → ServiceReply | writes | admins |\n"; !strings.Contains(table(), want) {
		t.Error("it is not in the table")
	}
	if Of("skep.v1.api.service.polish") != fresh.Verb {
		t.Error("it is not found")
	}
	if _, err := Call(t.Context(), nil, atNode[*pb.Ref, *pb.Ref]("node-agent", "polish", Reads), &pb.Ref{}); err == nil {
		t.Error("asked of no node")
	}
}

package render

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

// StackState is a stack's state in lower case.
func StackState(s skepv1.StackState) string { return spec.Word(s) }

// Stacks is `stack ls`. The column STATE is shown when some stack is not as it was asked to be.
func Stacks(list []*skepv1.Stack, now time.Time) *Table {
	sort.SliceStable(list, func(i, j int) bool { return NaturalLess(list[i].GetName(), list[j].GetName()) })
	t := &Table{
		Key: "Name",
		Columns: []Column{{"Name", "NAME"}, {"Services", "SERVICES"}, {"State", "STATE"}, {"Revision", "REVISION"}, {"Author", "AUTHOR"}, {"UpdatedAt", "UPDATED"},
			{"ID", "ID"}},
		Default: "{{.Name}}\t{{.Services}}",
	}
	for _, s := range list {
		services := 0
		for _, m := range s.GetMembers() {
			if m.GetKind() == "service" {
				services++
			}
		}
		state := StackState(s.GetState())
		if len(s.GetProblems()) > 0 {
			state += ", with problems"
		}
		if s.GetState() != skepv1.StackState_STACK_STATE_DEPLOYED && !strings.HasSuffix(t.Default, "{{.State}}") {
			t.Default += "\t{{.State}}"
		}
		t.Rows = append(t.Rows, Row{"ID": s.GetMeta().GetId(), "Name": s.GetName(), "Services": fmt.Sprint(services), "State": state, "Revision": fmt.Sprint(s.GetRevision()),
			"Author": dash(s.GetAuthor()), "UpdatedAt": Ago(s.GetMeta().GetUpdatedAt().AsTime(), now)})
	}
	return t
}

// StackRevisions is `stack history`; current marks the newest.
func StackRevisions(list []*skepv1.StackRevision, current uint64, now time.Time) *Table {
	t := &Table{Key: "Revision", Columns: []Column{{"Revision", "REVISION"}, {"Created", "CREATED"}, {"Author", "AUTHOR"}, {"Summary", "SUMMARY"}, {"Current", "CURRENT"}},
		Default: `{{.Revision}}{{if eq .Current "true"}} *{{end}}` + "\t{{.Created}}\t{{.Author}}\t{{.Summary}}"}
	for _, r := range list {
		t.Rows = append(t.Rows, Row{"Revision": fmt.Sprint(r.GetNumber()), "Current": fmt.Sprint(r.GetNumber() == current), "Created": Ago(r.GetCreatedAt().AsTime(), now),
			"Author": dash(r.GetAuthor()), "Summary": dash(r.GetSummary())})
	}
	return t
}

// verbs are the words of a plan, in the order in which its changes are counted.
var verbs = []skepv1.StackChange_Verb{skepv1.StackChange_VERB_CREATE, skepv1.StackChange_VERB_CHANGE, skepv1.StackChange_VERB_REMOVE, skepv1.StackChange_VERB_LEAVE, skepv1.StackChange_VERB_KEEP}

// StackPlan prints what a deploy does, one line for every object and below it one for every field that changes, then the
// sums. Of what stays as it is only the number is told, unless full.
func StackPlan(w io.Writer, changes []*skepv1.StackChange, full bool) {
	n := map[skepv1.StackChange_Verb]int{}
	pad := 0
	for _, c := range changes {
		n[c.GetVerb()]++
		pad = max(pad, len(c.GetKind()))
	}
	for _, c := range changes {
		if c.GetVerb() == skepv1.StackChange_VERB_KEEP && !full {
			continue
		}
		note := ""
		if c.GetVerb() == skepv1.StackChange_VERB_LEAVE {
			note = " (not asked for any more; --prune removes it)"
		}
		plain.Fprintf(w, "%s %s %s%s\n", fmt.Sprintf("%-6s", spec.Word(c.GetVerb())), fmt.Sprintf("%-*s", pad, c.GetKind()), c.GetName(), note)
		for _, f := range c.GetFields() {
			plain.Fprintf(w, "         %s\n", f)
		}
	}
	var sums []string
	for _, v := range verbs {
		if n[v] > 0 {
			sums = append(sums, fmt.Sprintf("%d to %s", n[v], spec.Word(v)))
		}
	}
	plain.Fprintf(w, "%s\n", strings.Join(sums, ", "))
}

// StackDiff prints what differs between two specs of a stack.
func StackDiff(w io.Writer, from, to *skepv1.StackSpec) {
	type object struct {
		kind, name string
	}
	var order []object
	index := func(s *skepv1.StackSpec) map[object]any {
		out := map[object]any{}
		add := func(kind, name string, v any) {
			o := object{kind, name}
			if !slices.Contains(order, o) {
				order = append(order, o)
			}
			out[o] = v
		}
		for _, v := range s.GetNetworks() {
			add("network", v.GetName(), v)
		}
		for _, v := range s.GetSecrets() {
			add("secret", v.GetName(), v)
		}
		for _, v := range s.GetConfigs() {
			add("config", v.GetName(), v)
		}
		for _, v := range s.GetServices() {
			add("service", v.GetName(), v)
		}
		return out
	}
	a, b := index(from), index(to)
	for _, o := range order {
		x, y := a[o], b[o]
		switch {
		case x == nil:
			plain.Fprintf(w, "create %s %s\n", o.kind, o.name)
		case y == nil:
			plain.Fprintf(w, "remove %s %s\n", o.kind, o.name)
		default:
			if lines := changed(x, y); len(lines) > 0 {
				plain.Fprintf(w, "change %s %s\n", o.kind, o.name)
				for _, l := range lines {
					plain.Fprintf(w, "         %s\n", l)
				}
			}
		}
	}
}

// changed says field by field what differs between two objects of a kind.
func changed(a, b any) []string {
	switch x := a.(type) {
	case *skepv1.ServiceSpec:
		return spec.Changes(x, b.(*skepv1.ServiceSpec))
	case *skepv1.StackFile:
		y := b.(*skepv1.StackFile)
		var out []string
		if x.GetVersion() != y.GetVersion() || x.GetId() != y.GetId() {
			out = append(out, fmt.Sprintf("version %d -> %d", x.GetVersion(), y.GetVersion()))
		}
		if !maps.Equal(x.GetLabels(), y.GetLabels()) {
			out = append(out, "labels")
		}
		return out
	case *skepv1.NetworkSpec:
		if !proto.Equal(x, b.(*skepv1.NetworkSpec)) {
			return []string{"options"}
		}
	}
	return nil
}

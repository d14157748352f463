package cli

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/bus"
)

// servicePolish is the one line that a new verb is in the list.
var servicePolish = api.ForPeople[*skepv1.Ref, *skepv1.ServiceReply]("state", "service.polish", api.Reads, api.Viewers)

// A verb that is added with a line in the list, a handler and a command is known to everything that has to know it.
func TestAVerbIsAdded(t *testing.T) {
	c := newCluster(t)
	// The handler. It is busy once: what only reads is asked again.
	busy := true
	serve(c, c.rs, servicePolish, func(r *skepv1.Ref) (*skepv1.ServiceReply, error) {
		if busy {
			busy = false
			return nil, fault.Unavailable("busy")
		}
		return &skepv1.ServiceReply{Service: &skepv1.Service{Spec: &skepv1.ServiceSpec{Name: "shining " + r.Ref}}}, nil
	})
	c.flush()

	var out, errs safeBuffer
	root, a := build(c.env(&out, &errs))
	root.AddCommand(&cobra.Command{Use: "polish", RunE: func(cmd *cobra.Command, args []string) error { // the command
		r, err := call(cmd.Context(), a, servicePolish, &skepv1.Ref{Ref: args[0]})
		if err != nil {
			return err
		}
		a.printf("%s\n", r.Service.Spec.Name)
		return a.Out.Flush()
	}})
	root.SetArgs([]string{"polish", "web"})
	if err := root.ExecuteContext(context.Background()); err != nil || out.String() != "shining web\n" {
		t.Fatalf("%v: %s", err, out.String())
	}
	a.nc.Close()

	if got := messageOf(servicePolish.Subject(), true); got != "ServiceReply" {
		t.Errorf("decode takes the reply for %q", got)
	}
	for role, want := range map[bus.Role]bool{bus.RoleViewer: true, bus.RoleAdmin: true, bus.RoleWorker: false} {
		may := slices.ContainsFunc(bus.Permissions(role, "x", subject.Local).Publish.Allow, func(p string) bool { return subject.Matches(p, servicePolish.Subject()) })
		if may != want {
			t.Errorf("%s may ask it: %v", role, may)
		}
	}
	if s := string(errs.String()); strings.Contains(s, "busy") {
		t.Error(s)
	}
}

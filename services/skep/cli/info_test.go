package cli

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/services/skep/cli/conn"
)

// info says what is true of the node as far as it is known here, with since when.
func TestInfoSaysHowTheNodeStands(t *testing.T) {
	worker := conn.Info{NodeID: nodeID, Role: "worker", Hostname: "w1", ClusterID: "cl", State: "ready"}
	minutes := testNow.Add(-3 * time.Minute).UnixMilli()
	for _, c := range []struct {
		name         string
		info         conn.Info
		infoErr      error
		link         conn.Link
		linkErr      error
		line, docker string
	}{
		{name: "well", info: worker, link: conn.Link{State: member.LinkUp}, line: " State: ready\n", docker: "active "},
		{name: "an older daemon", info: worker, linkErr: fmt.Errorf("404"), line: " State: ready\n", docker: "active "},
		{name: "cut off", info: worker, link: conn.Link{State: member.LinkCut, Why: "no manager can be reached", SinceMs: minutes},
			line: " State: cut off: no manager can be reached (last heard 3 minutes ago)\n", docker: "error no manager can be reached (last heard 3 minutes ago)"},
		{name: "expelled", info: worker, link: conn.Link{State: member.LinkRefused, Why: "it was removed", SinceMs: minutes},
			line: " State: refused: it was removed (last heard 3 minutes ago)\n", docker: "error it was removed"},
		{name: "not in the group", info: conn.Info{NodeID: nodeID, Role: "worker", State: "ready", Error: "the group was founded anew"}, line: " State: error: the group was founded anew\n", docker: "error the group"},
		{name: "starting", info: conn.Info{NodeID: nodeID, Role: "worker", State: "starting"}, line: " State: starting\n", docker: "pending "},
		{name: "not root", infoErr: fmt.Errorf("%w (/run/skep/node.sock)", conn.ErrNotRoot), line: "Swarm: unknown: only root may ask the daemon of this machine (/run/skep/node.sock): run skep info as root", docker: "unknown only root"},
		{name: "none", infoErr: fault.NotFound("nothing"), line: "Swarm: inactive\n", docker: "inactive "},
	} {
		run := func(args ...string) result {
			var out, errs safeBuffer
			env := (&cluster{t: t}).env(&out, &errs)
			env.Connect = nil
			env.Info = func(context.Context) (conn.Info, error) { return c.info, c.infoErr }
			env.Link = func(context.Context) (conn.Link, error) { return c.link, c.linkErr }
			code := Main(t.Context(), env, append([]string{"info"}, args...))
			return result{code, out.String(), errs.String()}
		}
		if r := run(); r.code != 0 || !strings.Contains(r.out, c.line) {
			t.Errorf("%s: %d %s%s", c.name, r.code, r.out, r.err)
		}
		if r := run("--format", "{{.Swarm.LocalNodeState}} {{.Swarm.Error}}"); r.code != 0 || !strings.HasPrefix(r.out, c.docker) {
			t.Errorf("%s: %d %s%s", c.name, r.code, r.out, r.err)
		}
	}
}

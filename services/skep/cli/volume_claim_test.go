package cli

import (
	"testing"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

// withClaims is a cluster of which nodes hold volumes.
func withClaims(c *cluster) *cluster {
	since := testNow.Add(-2 * time.Hour).UnixMilli()
	claims := []*skepv1.VolumeClaim{
		{Driver: "rexray", Name: "data", NodeId: nodeID, NodeHostname: "w1", ServiceId: webID, ServiceName: "web", SinceUnixMs: since, TaskIds: []string{"t1"}, State: "in use"},
		{Driver: "rexray", Name: "old", NodeId: "gone", NodeHostname: "w9", ServiceId: "svc", SinceUnixMs: since, WaitingTaskIds: []string{"t2"}, State: "lost"},
	}
	c.upkeep.claims = claims
	serve(c, c.rs, api.VolumeRelease, func(r *skepv1.ReleaseClaimRequest) (*skepv1.ReleaseClaimReply, error) {
		if r.Name == "data" && !r.Force {
			return nil, fault.Conflict("release volume rexray/data: web.1 uses it on node w1: scale its service to 0, or remove it, first")
		}
		return &skepv1.ReleaseClaimReply{Claim: claims[1]}, nil
	})
	serve(c, c.rs, api.NodeFence, func(r *skepv1.FenceNodeRequest) (*skepv1.NodeReply, error) {
		if r.Undo {
			return &skepv1.NodeReply{}, nil
		}
		return nil, fault.Invalid("fence node w1: it is up and may be writing")
	})
	c.flush()
	return c
}

func TestClaimSession(t *testing.T) {
	c := withClaims(newCluster(t))
	golden.Check(t, "claim", session(c,
		"volume claims", "volume claims -q", "volume claims --json", "volume claims --filter nope=1", "volume claims --format {{.Name}}:{{.Node}}:{{.State}}",
		"volume release old", "volume release data", "volume release", "volume release a b", "node fence w1", "node fence --undo w1", "node fence", "node fence nope",
	))
	want(t, c.run("volume", "release", "-d", "rexray", "--force", "data"), 0, "old (was held by w9)\n", "")
	if r := sent[*skepv1.ReleaseClaimRequest](c); r.Driver != "rexray" || !r.Force || r.Name != "data" {
		t.Errorf("%v", r)
	}
	want(t, c.run("swarm", "update", "--fence-cmd", "/usr/local/bin/fence"), 0, "Swarm updated.\n", "")
	if r := sent[*skepv1.UpdateClusterRequest](c); r.Spec.FenceCommand != "/usr/local/bin/fence" {
		t.Errorf("%v", r)
	}
	for _, bad := range []string{"fence", "/usr/../bin/x", "/a b\n"} {
		if got := c.run("swarm", "update", "--fence-cmd", bad); got.code != ExitUsage {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

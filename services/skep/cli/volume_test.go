package cli

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

const otherNode = "othernodeothernodeotherno"

// withVolumes is a cluster of two nodes that have volumes.
func withVolumes(t *testing.T) *cluster {
	c := newCluster(t)
	c.nodes = append(c.nodes, &skepv1.Node{Meta: &skepv1.Meta{Id: otherNode}, Spec: &skepv1.NodeSpec{},
		Description: &skepv1.NodeDescription{Hostname: "w2"}, Status: &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY}})
	c.tasks = []*skepv1.Task{{Meta: &skepv1.Meta{Id: "t1"}, Name: "db.1", ServiceId: webID}}
	at := timestamppb.New(testNow.Add(-time.Hour))
	local := func(name string, v *skepv1.Volume) *skepv1.Volume {
		v.Name, v.Driver, v.Scope, v.CreatedAt, v.Mountpoint = name, "local", "local", at, "/var/lib/skep/agent/volumes/"+name+"/_data"
		return v
	}
	shared := &skepv1.Volume{Name: "shared", Driver: "rexray", Scope: "global", SizeBytes: -1, Status: map[string]string{"iops": "100"}}
	have := map[string][]*skepv1.Volume{
		nodeID: {local("data-10", &skepv1.Volume{SizeBytes: -1, Options: map[string]string{"type": "nfs", "device": ":/x"}, Mounted: true}),
			local("data-2", &skepv1.Volume{SizeBytes: 3 << 20, TaskIds: []string{"t1", "t9"}, Labels: map[string]string{"team": "x"}}), shared},
		otherNode: {local("data-2", &skepv1.Volume{SizeBytes: 0}), shared},
	}
	for _, id := range []string{nodeID, otherNode} {
		find := func(name string) (*skepv1.Volume, error) {
			for _, v := range have[id] {
				if v.Name == name {
					return v, nil
				}
			}
			return nil, fault.NotFound("no such volume: %s", name)
		}
		serve(c, c.rs, api.VolumeList.At(id), func(r *skepv1.ListVolumesRequest) (*skepv1.ListVolumesReply, error) {
			// One volume a page: clients must follow.
			for i, v := range have[id] {
				if r.GetPage().GetAfter() == "" || i > 0 && have[id][i-1].Name == r.Page.After {
					v = proto.CloneOf(v)
					if !r.Size {
						v.SizeBytes = -1
					}
					out := &skepv1.ListVolumesReply{Volumes: []*skepv1.Volume{v}, Warnings: []string{"volumes of driver sick are left out: it does not answer"}}
					if i+1 < len(have[id]) {
						out.Next = v.Name
					}
					return out, nil
				}
			}
			return &skepv1.ListVolumesReply{}, nil
		})
		serve(c, c.rs, api.VolumeCreate.At(id), func(r *skepv1.CreateVolumeRequest) (*skepv1.VolumeReply, error) {
			if _, err := find(r.Name); err == nil {
				return nil, fault.Conflict(`volume %s is on node x already, with other options: o is "ro" and is "rw" there`, r.Name)
			}
			return &skepv1.VolumeReply{Volume: &skepv1.Volume{Name: r.Name}}, nil
		})
		serve(c, c.rs, api.VolumeUpdate.At(id), func(r *skepv1.UpdateVolumeRequest) (*skepv1.VolumeReply, error) {
			v, err := find(r.Name)
			return &skepv1.VolumeReply{Volume: v}, err
		})
		serve(c, c.rs, api.VolumeRemove.At(id), func(r *skepv1.RemoveVolumeRequest) (*skepv1.Empty, error) {
			v, err := find(r.Name)
			if err == nil && len(v.TaskIds) > 0 {
				err = fault.Conflict("remove volume %s: volume is in use on node w1 by task db.1", r.Name)
			}
			return &skepv1.Empty{}, err
		})
		serve(c, c.rs, api.VolumePrune.At(id), func(r *skepv1.PruneVolumesRequest) (*skepv1.PruneVolumesReply, error) {
			if !r.All {
				return &skepv1.PruneVolumesReply{}, nil
			}
			return &skepv1.PruneVolumesReply{Removed: []string{"data-10"}, ReclaimedBytes: 1 << 20}, nil
		})
	}
	c.flush()
	return c
}

func TestVolumeSession(t *testing.T) {
	c := withVolumes(t)
	golden.Check(t, "volume", session(c,
		"volume ls", "volume list --size", "volume ls -q", "volume ls --node w2 --format {{.Name}}:{{.Node}}:{{.Labels}}:{{.Scope}}", "volume ls --filter node=w1 --format json",
		"volume ls --filter nope", "volume ls --filter node=nope", "volume ls --node w1 --json",
		"volume inspect data-2 nope", "volume inspect --node w2 --size -f {{.Name}}:{{.Node.Hostname}}:{{.UsageData.Size}} data-2", "volume inspect shared --node w1",
		"volume create --node w2 --label team=x new", "volume create --node all --opt type=tmpfs --opt device=tmpfs --opt o=size=1m new", "volume create new",
		"volume create --node w2 data-2", "volume create --node all", "volume create --node w2 --opt tpye=nfs x", "volume create --node w2 --opt type=nfs x", "volume create --node w2 --opt type x",
		"volume create --node w2 --label =x x", "volume create a b",
		"volume update data-10 --label-add a=b --label-rm team", "volume update data-10", "volume update nope --label-rm x",
		"volume rm data-2", "volume rm --node w1 data-2", "volume rm --node w2 data-2", "volume rm data-10 shared", "volume rm nope", "volume rm -f nope", "volume rm",
		"volume prune -f", "volume prune -f --all --node w1", "volume prune", "volume prune -f --filter name=x",
	))
}

// What is sent is what was asked for, and a node that cannot be asked is named after what the others said.
func TestVolumeRequests(t *testing.T) {
	c := withVolumes(t)
	want(t, c.run("volume", "create", "--node", "w1", "-d", "rexray", "-o", "size=5", "-o", "o=a=b", "--label", "l", "v"), 0, "v\n", "")
	if r := sent[*skepv1.CreateVolumeRequest](c); r.Driver != "rexray" || r.Options["size"] != "5" || r.Options["o"] != "a=b" || len(r.Labels) != 1 {
		t.Errorf("%v", r)
	}
	want(t, c.run("volume", "prune", "--all", "-f", "--filter", "label!=keep", "--node", "w2"), 0, "w2: data-10", "")
	if p := sent[*skepv1.PruneVolumesRequest](c); !p.All || p.Filters[0].Key != "label!" {
		t.Errorf("%v", p)
	}
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.ListTasksRequest); ok {
			return fault.Unavailable("no leader")
		}
		return nil
	}
	got := c.run("volume", "ls")
	if !strings.Contains(got.out, "t1, t9") || got.code != 0 || !strings.Contains(got.err, "shown by their ids") {
		t.Errorf("%+v", got)
	}
}

package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// withVolume is a service whose task writes a plug-in's volume that is the same everywhere.
func withVolume(name, volume string) *skepv1.ServiceSpec {
	s := service(name, 1, "db")
	s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_VOLUME, VolumeDriver: "rexray", Source: volume, Target: "/data"}}
	s.Task.Restart = &skepv1.RestartPolicy{Condition: skepv1.RestartCondition_RESTART_CONDITION_ANY, Delay: durationpb.New(10 * time.Millisecond)}
	return s
}

// plugin gives every node the plug-in.
func (f *fake) plugin(nodes int) {
	for i := range nodes {
		id := fmt.Sprintf("node%d", i+1)
		f.put(f.node, "desc."+id, &skepv1.NodeDescription{
			Hostname: id, Platform: &skepv1.Platform{Os: "linux", Arch: "amd64"}, Resources: &skepv1.Resources{NanoCpus: 8e9, MemoryBytes: 16 << 30},
			Plugins: []*skepv1.Plugin{{Type: "Volume", Name: "rexray", Scope: "global"}},
		})
	}
}

// fenced says that a node's power was cut, which ends its mounts, or that this was taken back. A node that returns mounts what
// its tasks then need.
func (f *fake) fenced(id string, fence bool) {
	if fence {
		f.mu.Lock()
		delete(f.held, id)
		f.mu.Unlock()
	}
	n := &skepv1.NodeObject{Meta: &skepv1.Meta{Id: id}, Spec: &skepv1.NodeSpec{Availability: skepv1.Availability_AVAILABILITY_ACTIVE}}
	if fence {
		n.Fence = &skepv1.NodeFence{}
	}
	f.put(f.spec, "node."+id, n)
}

// oneWriter: no volume is mounted on two nodes that live, and a task that runs has its node's claim.
func (f *fake) oneWriter() error {
	at := map[string]string{}
	for _, node := range slices.Sorted(maps.Keys(f.held)) {
		for v := range f.held[node] {
			if f.dead[node] {
				continue
			}
			if at[v] != "" {
				return fmt.Errorf("%s is mounted on %s and %s", v, at[v], node)
			}
			at[v] = node
		}
	}
	for id, v := range f.volumes {
		for _, r := range f.running(id) {
			if !slices.ContainsFunc(slices.Collect(maps.Values(f.claims)), func(c *skepv1.VolumeClaim) bool { return c.Name == v && c.NodeId == r.node }) {
				return fmt.Errorf("%s runs on %s without a claim on %s", r.Id, r.node, v)
			}
		}
	}
	return nil
}

func (f *fake) home(service string) (node string) {
	f.await(service+" to run", func() error {
		run := f.running(service)
		if len(run) != 1 {
			return fmt.Errorf("%d run", len(run))
		}
		node = run[0].node
		return f.violated
	})
	return node
}

// waits awaits a task of the service that waits, and says so.
func (f *fake) waits(service, why string) {
	f.t.Helper()
	f.await(service+" to wait", func() error {
		if f.violated != nil {
			return f.violated
		}
		for _, r := range f.records(service) {
			if r.node == "" && strings.Contains(r.Err, why) {
				return nil
			}
		}
		return fmt.Errorf("no task says %q", why)
	})
}

// Kill the leader at every commit step while the node with the volume dies and is fenced, or is drained: the volume is never on
// two nodes, and its task runs again.
func TestVolumeMovesKilledAtEveryStep(t *testing.T) {
	f := newFake(t, kvtest.Server(t), 3)
	f.plugin(3)
	f.watch = func() {
		if err := f.oneWriter(); err != nil && f.violated == nil {
			f.violated = err
		}
	}
	round := 0
	for _, how := range []string{"fence", "drain"} {
		t.Run(how, func(t *testing.T) {
			f.t = t
			for step := int64(1); ; step++ {
				round++
				id := fmt.Sprintf("db%d", round)
				volume := "data-" + id
				f.mu.Lock()
				f.volumes[id] = volume
				f.mu.Unlock()
				_, stop := f.start("first"+id, nil)
				f.putService(id, 1, withVolume(id, volume))
				was := f.home(id)
				stop()
				fp, dead := assassin(step)
				_, stopVictim := f.start("victim"+id, fp)
				f.awaitLeader("victim" + id)
				_, stopStandby := f.start("standby"+id, nil)
				if how == "fence" {
					f.live(was, skepv1.NodeState_NODE_STATE_DOWN)
					f.fenced(was, true)
				} else {
					f.setNode(was, skepv1.Availability_AVAILABILITY_DRAIN)
				}
				f.await(fmt.Sprintf("%s, killed at step %d", how, step), func() error {
					run := f.running(id)
					if len(run) != 1 || run[0].node == was {
						return fmt.Errorf("%v run", run)
					}
					return f.violated
				})
				killed := dead.Load()
				stopVictim()
				// The node returns and is told to stop before its fence ends.
				f.live(was, skepv1.NodeState_NODE_STATE_READY)
				f.fenced(was, false)
				f.removeService(id)
				f.await("no claim left", func() error {
					if len(f.claims) > 0 || len(f.records(id)) > 0 {
						return fmt.Errorf("%v and %d records", f.claims, len(f.records(id)))
					}
					return f.violated
				})
				stopStandby()
				if !killed {
					t.Logf("%d steps", step-1)
					break
				}
			}
		})
	}
}

func ask[R any](t *testing.T, f func(context.Context) (R, error)) (R, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return f(ctx)
}

// A node that dies keeps its volume until it is fenced, one that cannot unmount until it has, and one that was removed until a
// person says that nobody writes.
func TestVolumeWaits(t *testing.T) {
	n := kvtest.Server(t)
	f := newFake(t, n, 3)
	f.plugin(3)
	f.watch = func() {
		if err := f.oneWriter(); err != nil && f.violated == nil {
			f.violated = err
		}
	}
	f.mu.Lock()
	f.volumes["db"] = "data"
	f.mu.Unlock()
	s, _ := f.start("one", nil)
	f.putService("db", 1, withVolume("db", "data"))
	was := f.home("db")

	f.mu.Lock()
	f.stuck[was] = true
	f.mu.Unlock()
	f.setNode(was, skepv1.Availability_AVAILABILITY_DRAIN)
	f.waits("db", "volume rexray/data is held by node "+was+", which has not said yet that it is unmounted")
	release := func(r *skepv1.ReleaseClaimRequest) error {
		_, err := ask(t, func(ctx context.Context) (*skepv1.ReleaseClaimReply, error) {
			return api.Call(ctx, s.cfg.NC, api.VolumeRelease, r)
		})
		return err
	}
	if err := release(&skepv1.ReleaseClaimRequest{Name: "data"}); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "node "+was+" is up and will release it") {
		t.Fatalf("released from a node that is up: %v", err)
	}
	f.mu.Lock()
	delete(f.stuck, was)
	f.mu.Unlock()
	f.setNode(was, skepv1.Availability_AVAILABILITY_ACTIVE)
	f.kick()
	was = f.home("db")
	if err := release(&skepv1.ReleaseClaimRequest{Name: "data", Force: true}); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "db.1 uses it on node "+was) {
		t.Fatalf("released in use: %v", err)
	}
	if err := release(&skepv1.ReleaseClaimRequest{Name: "nope"}); !fault.Is(err, fault.CodeNotFound) {
		t.Fatalf("released what is not held: %v", err)
	}

	f.live(was, skepv1.NodeState_NODE_STATE_DOWN)
	f.waits("db", "volume rexray/data is held by node "+was+", which is down: skep node fence "+was+" once it is certainly off, or give the cluster a fencing command")
	claims := func() []*skepv1.VolumeClaim {
		r, err := ask(t, func(ctx context.Context) (*skepv1.ListClaimsReply, error) {
			return api.Call(ctx, s.cfg.NC, api.VolumeClaims, &skepv1.ListClaimsRequest{Filters: []*skepv1.Filter{{Key: "node", Values: []string{was}}}})
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.Claims
	}
	if c := claims(); len(c) != 1 || c[0].State != "lost" || len(c[0].WaitingTaskIds) != 1 || c[0].ServiceName != "db" || c[0].NodeHostname != was {
		t.Fatalf("claims %v", c)
	}
	if err := f.spec.Delete(f.ctx, "node."+was, 0); err != nil {
		t.Fatal(err)
	}
	f.waits("db", "volume rexray/data is held by node "+was+", which was removed: skep volume release --driver rexray data once that machine is certainly off")
	if err := release(&skepv1.ReleaseClaimRequest{Name: "data", Driver: "other"}); !fault.Is(err, fault.CodeNotFound) {
		t.Fatalf("released of another driver: %v", err)
	}
	if err := release(&skepv1.ReleaseClaimRequest{Name: "data", Driver: "rexray"}); err != nil {
		t.Fatal(err)
	}
	if now := f.home("db"); now == was {
		t.Fatalf("it runs on %s still", now)
	}
}

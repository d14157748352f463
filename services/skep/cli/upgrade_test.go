package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
)

// nextSource says that it is skep 0.2.0.
const nextSource = "package main\n\nfunc main() { println2(`[{\"Client\":{\"Version\":\"0.2.0\",\"Os\":\"linux\",\"Arch\":\"amd64\"}}]`) }\n\nfunc println2(s string) { os.Stdout.WriteString(s) }\n"

// nextBuild is a file that says it is skep 0.2.0.
func nextBuild(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module skep.dev/services/skep\n\ngo 1.24\n", "cmd/skep/main.go": strings.Replace(nextSource, "package main\n", "package main\n\nimport \"os\"\n", 1)} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", "next", "./cmd/skep")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "next")
}

// upgradable is a cluster of a manager m1, which leads, and a worker w1, both of 0.1.0, that take a program; bad is the node
// on which none comes up.
type upgradable struct {
	*cluster
	mu    sync.Mutex
	order []string
	bad   string
	why   string // what it says, "" = as a daemon that ends
}

func newUpgradable(t *testing.T) *upgradable {
	u := &upgradable{cluster: newCluster(t)}
	m := proto.CloneOf(u.nodes[0])
	m.Meta.Id, m.Description.Hostname, m.Spec.Role = node2, "m1", manager
	m.Manager = &skepv1.ManagerStatus{Leader: true, Reachability: "reachable", Version: "0.1.0"}
	u.nodes = append(u.nodes, m)
	led := &skepv1.ListManagersReply{Led: true, Set: &skepv1.ManagerSet{}}
	onNode(u.cluster, api.ManagerList, func(*skepv1.Empty) (*skepv1.ListManagersReply, error) { return led, nil })
	onNode(u.cluster, api.StoreState.At(node2), func(*skepv1.StoreStateRequest) (*skepv1.StoreStateReply, error) { return u.upkeep.store, nil })
	for _, n := range u.nodes {
		id, host := n.Meta.Id, n.Description.Hostname
		state := &skepv1.UpgradeState{Running: "0.1.0"}
		onNode(u.cluster, api.UpgradeState.At(id), func(*skepv1.Empty) (*skepv1.UpgradeState, error) {
			u.mu.Lock()
			defer u.mu.Unlock()
			return proto.CloneOf(state), nil
		})
		srv, err := stream.Serve(u.nc, api.UpgradeOpen.At(id).Subject(), id, func(_ context.Context, s *stream.Session, body []byte) {
			r := &skepv1.UpgradeNodeRequest{}
			if err := proto.Unmarshal(body, r); err != nil {
				s.Refuse(fault.Invalid("%v", err))
				return
			}
			b, err := io.ReadAll(s.Reader(stream.In))
			if sum := sha256.Sum256(b); err != nil || string(sum[:]) != string(r.Sha256) || uint64(len(b)) != r.Size {
				_ = s.Exit(1, fault.Invalid("not what was announced"))
				return
			}
			u.mu.Lock()
			u.order = append(u.order, host)
			state.From, state.To, state.Sha256 = "0.1.0", r.Version, r.Sha256
			good := u.bad != host
			if state.Step = skepv1.UpgradeStep_UPGRADE_STEP_DONE; good {
				state.Running = r.Version
			} else {
				state.Step, state.Error = skepv1.UpgradeStep_UPGRADE_STEP_UNDONE, cmp.Or(u.why, "the daemon ended (exit status 1)")
			}
			u.mu.Unlock()
			if good {
				u.cluster.mu.Lock()
				n.Description.EngineVersion = r.Version
				if n.Manager != nil {
					n.Manager.Version = r.Version
				}
				u.cluster.mu.Unlock()
			}
			_ = s.Exit(0, nil)
		}, stream.WithLimit(1))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = srv.Close() })
	}
	u.flush()
	return u
}

func TestUpgrade(t *testing.T) {
	u, next := newUpgradable(t), nextBuild(t)
	want(t, u.run("upgrade"), 2, "", "--to FILE")
	want(t, u.run("upgrade", "--to", "/bin/sh"), 1, "", "/bin/sh is not skep")
	want(t, u.run("upgrade", "--to", next, "--node", "w7"), 1, "", "no such node: w7")

	r := u.run("upgrade", "--to", next, "--dry-run")
	want(t, r, 0, "", "m1: leader, 0.1.0 to 0.2.0\nw1: worker, 0.1.0 to 0.2.0\n")
	if len(u.order) > 0 {
		t.Errorf("a dry run has upgraded %q", u.order)
	}
	r = u.run("upgrade", "--to", next)
	want(t, r, 0, "", "m1: it takes the new program")
	want(t, r, 0, "", "w1: worker, upgraded from 0.1.0 to 0.2.0 in")
	if got := strings.Join(u.order, " "); got != "m1 w1" {
		t.Errorf("the order was %s", got)
	}
	want(t, u.run("upgrade", "--to", next), 0, "", "Every node has version 0.2.0 already.")
	want(t, u.run("version"), 0, "Nodes:\n 0.2.0: m1, w1\n", "")
}

func TestUpgradeStopsAtTheFirstThatFails(t *testing.T) {
	u, next := newUpgradable(t), nextBuild(t)
	u.bad = "m1"
	r := u.run("upgrade", "--to", next)
	want(t, r, 1, "", "upgrade of node m1: it does not come up with version 0.2.0 and has 0.1.0 back: the daemon ended (exit status 1)\nNot touched: w1; run this again to go on")
	if got := strings.Join(u.order, " "); got != "m1" {
		t.Errorf("the order was %s", got)
	}
	var list []upgraded
	r = u.run("upgrade", "--to", next, "--json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 1 || list[0].Node != "m1" || list[0].Result != "failed" || r.code != 1 {
		t.Errorf("%+v %v", list, r)
	}
}

func TestUpgradeGate(t *testing.T) {
	u, next := newUpgradable(t), nextBuild(t)
	u.nodes[1].Manager.Reachability = "unreachable"
	want(t, u.run("upgrade", "--to", next), 1, "", "manager m1 is not reached by the others; nothing was changed")
	u.nodes[1].Manager.Reachability = "reachable"
	// Who is down is left out and named at the end.
	u.nodes[0].Status.State = skepv1.NodeState_NODE_STATE_DOWN
	want(t, u.run("upgrade", "--to", next), 1, "", "left out, because they are not ready: w1")
	if got := strings.Join(u.order, " "); got != "m1" {
		t.Errorf("upgraded: %s", got)
	}
	// Another kind of machine.
	u.nodes[0].Status.State, u.nodes[0].Description.Platform = skepv1.NodeState_NODE_STATE_READY, &skepv1.Platform{Os: "linux", Arch: "aarch64"}
	want(t, u.run("upgrade", "--to", next), 1, "", "is built for linux/amd64, and these nodes are other machines: w1")
}

// TestUpgradeOfHostileNodes: what nodes call themselves and say does not steer the terminal, nor pass for a line.
func TestUpgradeOfHostileNodes(t *testing.T) {
	u, next := newUpgradable(t), nextBuild(t)
	for _, n := range u.nodes {
		n.Description.Hostname += hostile
		n.Description.EngineVersion = "0.1" + hostile
	}
	u.bad, u.why = "m1", hostile
	lines := [][]string{{"--dry-run"}, {"--json"}, {}, {"--quiet"}}
	for i := range 2 {
		for _, args := range lines {
			r := u.run(append([]string{"upgrade", "--to", next}, args...)...)
			clean(t, strings.Join(args, " "), r.out)
			clean(t, strings.Join(args, " "), r.err)
			if !strings.Contains(r.out+r.err, "FORGED") {
				t.Errorf("%v shows none of it: %+v", args, r)
			}
		}
		if i == 0 {
			u.nodes[0].Status.State = skepv1.NodeState_NODE_STATE_DOWN
			u.nodes[1].Manager.Reachability = "unreachable"
		}
	}
}

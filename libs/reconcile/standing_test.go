package reconcile

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	nodeDown  = skepv1.NodeState_NODE_STATE_DOWN
	nodeReady = skepv1.NodeState_NODE_STATE_READY
)

// waiting is a service of six tasks on three nodes of which two are of the update, which waits for a word.
func waiting(t fataler, state string, change func(*skepv1.ServiceSpec)) *sim {
	m := rolling(t, 6, func(u *skepv1.UpdateConfig) { u.Parallelism = 2 })
	m.canary = 2
	m.service("s", func(s *skepv1.ServiceSpec) {
		s.Task.Container.Image = "v2"
		change(s)
	})
	m.canary = 0
	m.pass(20 * time.Second)
	if state == "paused" {
		m.control("s", func(c *skepv1.RolloutControl) { c.Paused = true })
		m.pass(time.Second)
	}
	if got := m.status().GetState() + " " + m.serving(); got != state+" v1:4 v2:2" {
		m.dump()
		m.fatal.Fatalf("the update is %s", got)
	}
	return m
}

func (m *sim) resume() {
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused, c.Canary, c.Resume = false, 0, c.Resume+1 })
}

// A service that is scaled to nothing while its canary waits, or comes up, has a canary again when it is scaled up.
func TestACanaryIsNotForgottenAtZero(t *testing.T) {
	for _, after := range []time.Duration{0, 2 * time.Second, 20 * time.Second} {
		m := rolling(t, 6, func(u *skepv1.UpdateConfig) { u.Parallelism = 2 })
		m.canary = 2
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Container.Image = "v2" })
		m.canary = 0
		m.pass(after)
		replicas := func(n uint64) { m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, n) }) }
		replicas(0)
		m.pass(20 * time.Second)
		m.stateIs(t, "canary", "0 of 0 tasks run revision 2: skep service promote or abort", "")
		replicas(5)
		m.pass(90 * time.Second)
		m.stateIs(t, "canary", "2 of 5 tasks run revision 2: skep service promote or abort", "v1:3 v2:2")
		replicas(0)
		m.pass(20 * time.Second)
		m.resume() // promoted
		m.pass(20 * time.Second)
		m.stateIs(t, "completed", "update completed", "")
		replicas(2)
		m.pass(20 * time.Second)
		m.stateIs(t, "completed", "update completed", "v2:2")
	}
}

// A canary's node and one of the others'.
func (m *sim) nodeOf(image string) string {
	for _, v := range m.s.services["s"].tasks {
		if v.wanted() && m.image(v) == image {
			return v.Node().ID
		}
	}
	m.fatal.Fatalf("nothing runs %s", image)
	return ""
}

// While an update waits for a word, what must be made anew is of the last good revision, and its own tasks of its own.
func TestWhatIsMadeWhileAnUpdateWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *sim)
		want string
	}{
		{"scale up", func(m *sim) { m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 9) }) }, "v1:7 v2:2"},
		{"a node with both dies", func(m *sim) { m.live(m.nodeOf("v2"), nodeDown) }, "v1:4 v2:2"},
		{"all nodes but one die", func(m *sim) { m.live("n1", nodeDown); m.live("n3", nodeDown) }, "v1:4 v2:2"},
		{"tasks of the old revision crash", func(m *sim) { m.crashes("v1") }, "v1:4 v2:2"},
		{"tasks of the new revision crash", func(m *sim) { m.crashes("v2") }, "v1:4 v2:2"},
		{"a node is drained", func(m *sim) {
			id := m.nodeOf("v2")
			m.nodes[id].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
			m.putNode(id)
		}, "v1:4 v2:2"},
		{"to nothing and up", func(m *sim) {
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 0) })
			m.pass(time.Second)
			m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 3) })
		}, "v1:3"},
	} {
		for _, state := range []string{"canary", "paused"} {
			if state == "canary" && c.name == "to nothing and up" {
				continue // nothing is left that waits
			}
			for _, word := range []string{"resume", "abort"} {
				t.Run(c.name+", "+state+", "+word, func(t *testing.T) {
					m := waiting(t, state, func(*skepv1.ServiceSpec) {})
					c.do(m)
					m.pass(90 * time.Second)
					m.stateIs(t, state, "", c.want)
					n := m.specs["s"].Spec.Mode.GetReplicated().Replicas
					if word == "resume" {
						m.resume()
						m.pass(time.Minute)
						m.stateIs(t, "completed", "update completed", fmt.Sprint("v2:", n))
						return
					}
					old := m.running("v1")
					m.rollback(Rollback{Service: m.s.services["s"], From: 2, To: 1, Reason: "aborted"})
					m.pass(time.Minute)
					m.stateIs(t, "rollback_completed", "rollback completed", fmt.Sprint("v1:", n))
					if now := m.running("v1"); len(old) > 0 && !subset(old, now) {
						t.Errorf("the abort replaced tasks that were of the good revision: %v, then %v", old, now)
					}
				})
			}
		}
	}
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(x string) bool { return !slices.Contains(b, x) })
}

// running are the tasks of an image that run.
func (m *sim) running(image string) []string {
	var out []string
	for _, t := range m.s.services["s"].tasks {
		if t.wanted() && t.State() == Running && m.image(t) == image {
			out = append(out, t.ID)
		}
	}
	return out
}

// crashes ends all tasks of an image.
func (m *sim) crashes(image string) {
	for _, id := range m.running(image) {
		n := m.nodes[m.s.tasks[id].Node().ID]
		n.seen[id] = &skepv1.TaskStatus{TaskId: id, State: skepv1.TaskState_TASK_STATE_FAILED, SinceUnixMs: m.now.UnixMilli()}
	}
	m.agents()
}

// A restart while the update waits is one as any other: after its delay, and counted.
func TestRestartWhileAnUpdateWaits(t *testing.T) {
	m := waiting(t, "paused", func(*skepv1.ServiceSpec) {})
	m.crashes("v1")
	m.pass(4 * time.Second)
	m.stateIs(t, "paused", "", "v2:2")
	m.pass(2 * time.Second)
	m.stateIs(t, "paused", "", "v1:4 v2:2")
	for _, id := range m.running("v1") {
		is(t, []any{m.s.tasks[id].Revision, m.s.tasks[id].more().Failures}, "[1 1]")
	}
}

// With start-first a drained node loses none of its tasks before others serve in their place.
func TestDrainWhileAnUpdateWaits(t *testing.T) {
	m := waiting(t, "canary", func(s *skepv1.ServiceSpec) { s.Update.Order = startFirst })
	m.nodes["n1"].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_DRAIN
	m.putNode("n1")
	for range 50 {
		m.plan(99, false)
		m.agents()
		m.now = m.now.Add(100 * time.Millisecond)
		if n := len(m.running("v1")) + len(m.running("v2")); n < 6 {
			m.dump()
			t.Fatalf("%d of 6 tasks run", n)
		}
	}
	m.stateIs(t, "canary", "", "v1:4 v2:2")
}

// What cannot be run is not made: the new revision is, as there is no other.
func TestAStandingRevisionThatCannotBeRun(t *testing.T) {
	network := func(m *sim, o *skepv1.Network) {
		var val []byte
		if o != nil {
			val = enc(o)
		}
		m.both(func(s *State) error { return s.PutSpec("network.front", val) })
	}
	for _, c := range []struct {
		name string
		do   func(m *sim)
		want string
	}{
		{"all is there", func(*sim) {}, "v1:6 v2:2"},
		{"its network is gone", func(m *sim) { network(m, nil) }, "v1:4 v2:4"},
		{"its network is being removed", func(m *sim) { network(m, &skepv1.Network{Removing: true}) }, "v1:4 v2:4"},
		{"its network was forgotten by a feed that began anew", func(m *sim) {
			m.both(func(s *State) error {
				s.ResetSpecs(map[string]bool{"service.s": true, "node.n1": true, "node.n2": true, "node.n3": true})
				return nil
			})
		}, "v1:4 v2:4"},
		{"it is not kept", func(m *sim) { m.both(func(s *State) error { return s.PutRevision("service.s.1", nil) }) }, "v1:4 v2:4"},
		{"it is kept again", func(m *sim) {
			m.both(func(s *State) error { return s.PutRevision("service.s.1", nil) })
			m.both(func(s *State) error {
				return s.PutRevision("service.s.1", enc(&skepv1.Revision{ServiceId: "s", Number: 1, Spec: &skepv1.ServiceSpec{}}))
			})
		}, "v1:6 v2:2"},
	} {
		m := newSim(t)
		network(m, &skepv1.Network{})
		for i := range 3 {
			m.node(fmt.Sprint("n", i+1))
		}
		m.service("s", func(s *skepv1.ServiceSpec) {
			setReplicas(s, 6)
			s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "front"}, {Target: "host"}}
			s.Update = &skepv1.UpdateConfig{Parallelism: 2, FailureAction: pauseOnFailure, Order: stopFirst}
		})
		m.converge()
		m.canary = 2
		m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Networks, s.Task.Container.Image = nil, "v2" })
		m.pass(10 * time.Second)
		c.do(m)
		m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 8) })
		m.pass(10 * time.Second)
		if got := m.serving(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// The last good revision is placed by its own rules.
func TestAStandingRevisionIsPlacedAsItAsks(t *testing.T) {
	m := waiting(t, "paused", func(s *skepv1.ServiceSpec) { s.Task.Resources.Reservations.NanoCpus = 3e9 })
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 12) })
	m.pass(10 * time.Second)
	m.stateIs(t, "paused", "", "v1:10 v2:2")
	_, why := m.s.WhatIf(m.specs["s"], false, m.now, m.ids)
	if len(why.Candidates) != 3 {
		t.Errorf("the next task could go to %d nodes, want all 3: %v", len(why.Candidates), why.Summary)
	}

	// One that finds no place waits for it, and becomes one of the new revision when the update goes on.
	m = rolling(t, 3, func(u *skepv1.UpdateConfig) { u.Parallelism = 3 })
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.MaxReplicasPerNode = 1 })
	m.converge()
	m.canary = 1
	m.service("s", func(s *skepv1.ServiceSpec) { s.Task.Placement.MaxReplicasPerNode, s.Task.Container.Image = 0, "v2" })
	m.canary = 0
	m.pass(10 * time.Second)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 4) })
	m.pass(10 * time.Second)
	m.stateIs(t, "canary", "1 of 4", "v1:2 v2:1")
	x := m.one(t, "s", func(x *Task) bool { return x.wanted() && x.Node() == nil })
	is(t, []any{x.Revision, x.more().Err}, "[2 no suitable node (max replicas per node limit exceed)]")
	if p := m.plan(99, false); !p.Empty() {
		t.Errorf("it is planned again and again: %v", p.Changes)
	}
	m.resume()
	m.pass(20 * time.Second)
	m.stateIs(t, "completed", "update completed", "v2:4")
}

func TestAGlobalServiceWhileItsUpdateWaits(t *testing.T) {
	m := newSim(t)
	for i := range 3 {
		m.node(fmt.Sprint("n", i+1))
	}
	m.service("s", func(s *skepv1.ServiceSpec) { setGlobal(s) })
	m.converge()
	m.canary = 1
	m.update("v2")
	m.canary = 0
	m.pass(10 * time.Second)
	m.node("n4")
	m.crashes("v1")
	m.pass(10 * time.Second)
	m.stateIs(t, "canary", "1 of 4", "v1:3 v2:1")
	m.resume()
	m.pass(20 * time.Second)
	m.stateIs(t, "completed", "update completed", "v2:4")
}

// Tasks of an earlier revision that run what the newest does count as reached, whatever their placement was.
func TestACanaryAmongTasksThatNeedNoUpdate(t *testing.T) {
	m := rolling(t, 4, func(u *skepv1.UpdateConfig) { u.Parallelism = 0 })
	m.canary = 2
	m.update("v2")
	m.pass(20 * time.Second)
	m.service("s", func(s *skepv1.ServiceSpec) {
		s.Task.Placement.Preferences = []*skepv1.PlacementPreference{{Spread: "node.labels.zone"}}
	})
	m.pass(time.Second)
	m.converge()
	m.stateIs(t, "canary", "2 of 4 tasks run revision 3", "v1:2 v2:2")
}

// While a rollback is under way, or stuck, nothing more is made of the revision it leaves.
func TestWhatIsMadeDuringARollback(t *testing.T) {
	m := rolling(t, 3, func(u *skepv1.UpdateConfig) { u.FailureAction = rollbackOnFailure })
	m.update("bad")
	for range 100 { // state does not answer
		m.plan(99, false)
		m.agents()
		m.now = m.now.Add(100 * time.Millisecond)
	}
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 5) })
	for range 10 {
		m.plan(99, false)
		m.agents()
	}
	m.stateIs(t, "rollback_started", "update rolled back due to failure", "v1:4")
	m.rollback(Rollback{Service: m.s.services["s"], From: 2, To: 1, Reason: "it failed"})
	m.control("s", func(c *skepv1.RolloutControl) { c.Paused = true })
	m.pass(time.Second)
	m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, 6) })
	m.pass(10 * time.Second)
	if got := m.running("v1"); len(got) != 6 {
		m.dump()
		t.Errorf("%d tasks run the good revision, want 6", len(got))
	}
}

// Whatever happens to an update that now and then waits, a plan made while it does makes nothing of its revision in units
// that were not of it, and everything once it goes on; whoever read the same bytes plans the same; and a resumption or a
// rollback brings all to one revision, the rollback without a new task where the good one runs.
func TestNothingNewWhileAnUpdateWaits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "replicas")
		m := rolling(t, uint64(n), func(u *skepv1.UpdateConfig) {
			u.Parallelism = uint64(rapid.IntRange(0, 3).Draw(t, "parallelism"))
			u.Order = rapid.SampledFrom([]skepv1.UpdateOrder{stopFirst, startFirst}).Draw(t, "order")
			u.Monitor = durationpb.New(time.Duration(rapid.IntRange(0, 2).Draw(t, "monitor")) * time.Second)
		})
		m.canary = uint64(rapid.IntRange(0, 2).Draw(t, "canary"))
		m.update("v2")
		m.canary = 0
		node := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("n", rapid.IntRange(1, 3).Draw(t, "node")) })
		t.Repeat(map[string]func(*rapid.T){
			"plan": func(t *rapid.T) {
				a, b := m.s.Plan(m.now, NewIDs([32]byte{1}), nil), m.shadow.Plan(m.now, NewIDs([32]byte{1}), nil)
				if x, y := steps(a), steps(b); x != y {
					t.Fatalf("one would\n%s\nthe other\n%s", x, y)
				}
				m.onlyGood(a)
				m.plan(rapid.SampledFrom([]int{1, 2, 99}).Draw(t, "most"), rapid.Bool().Draw(t, "feed"))
			},
			"agents": func(*rapid.T) { m.agents() },
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 6000).Draw(t, "ms")) * time.Millisecond)
			},
			"crash": func(t *rapid.T) { m.crash(node.Draw(t, "on"), Failed) },
			"node": func(t *rapid.T) {
				id := node.Draw(t, "id")
				switch rapid.IntRange(0, 3).Draw(t, "what") {
				case 0:
					m.live(id, nodeDown)
				case 1:
					m.live(id, nodeReady)
				default:
					m.nodes[id].obj.Spec.Availability = skepv1.Availability(rapid.IntRange(0, 2).Draw(t, "availability"))
					m.putNode(id)
				}
			},
			"scale": func(t *rapid.T) {
				n = rapid.IntRange(0, 6).Draw(t, "to")
				m.service("s", func(s *skepv1.ServiceSpec) { setReplicas(s, uint64(n)) })
			},
			"word": func(t *rapid.T) {
				m.control("s", func(c *skepv1.RolloutControl) {
					c.Paused = rapid.Bool().Draw(t, "paused")
					c.Canary = uint64(rapid.IntRange(0, 3).Draw(t, "canary"))
					c.Resume += uint64(rapid.IntRange(0, 1).Draw(t, "resume"))
				})
			},
		})
		for id := range m.nodes {
			m.nodes[id].obj.Spec.Availability = skepv1.Availability_AVAILABILITY_ACTIVE
			m.putNode(id)
			m.live(id, nodeReady)
		}
		// What failed before counts no more. A task is dated after the one it replaces, with this clock, which stands still
		// between steps, up to some milliseconds ahead.
		m.now = m.now.Add(time.Second)
		abort := rapid.Bool().Draw(t, "abort")
		m.control("s", func(c *skepv1.RolloutControl) { c.Paused = abort })
		m.converge()
		want := fmt.Sprint("v2:", n)
		var old []string
		if abort {
			want, old = fmt.Sprint("v1:", n), m.running("v1")
			m.rollback(Rollback{Service: m.s.services["s"], From: 2, To: 1, Reason: "aborted"})
		} else {
			m.resume()
		}
		m.pass(2 * time.Second)
		m.converge()
		if n == 0 {
			want = ""
		}
		if got := m.serving(); got != want {
			m.dump()
			t.Fatalf("%s serve, want %s: %v", got, want, m.status())
		}
		if r := m.s.services["s"].rollout; r != nil && !r.over() {
			t.Fatalf("the rollout is %v", r)
		}
		if m.s.services["s"].rollout.record().GetRevision() == 3 && !subset(old, m.running("v1")) {
			m.dump()
			t.Fatalf("the rollback replaced tasks of the good revision: %v, now %v", old, m.running("v1"))
		}
		if p := m.plan(99, false); !p.Empty() {
			t.Fatalf("still something to do: %v", p.Changes)
		}
	})
}

// onlyGood checks what a plan makes while the update of s to revision 2 waits.
func (m *sim) onlyGood(p *Plan) {
	m.fatal.Helper()
	v := m.s.services["s"]
	r, c := v.rollout.record(), v.control
	waits := c.paused
	if v.rollout != nil {
		switch r.Status.State {
		case "completed":
			waits = false
		case "paused":
			waits = c.paused || c.resume <= r.Resume
		case "canary":
			waits = c.paused || c.canary != 0
		}
	}
	for i := range p.Changes {
		x := p.Changes[i].New
		if p.Changes[i].Verb != Create {
			continue
		}
		want, newest := uint64(2), &Task{}
		if waits {
			want = 1
			for _, t := range v.tasks {
				if t.Slot == x.Slot && t.Desired != Remove && t.Created > newest.Created {
					newest = t
				}
			}
			if newest.Revision == 2 {
				want = 2
			}
		}
		raised := r.GetStatus().GetState() == "canary" && x.Revision == 2 // more canaries: those are the update's
		if x.Revision != want && !raised {
			m.dump()
			m.fatal.Fatalf("%v, of revision %d, want %d (waits %v, %v)", &p.Changes[i], x.Revision, want, waits, r)
		}
	}
}

// What an image runs on is compared in one way, whatever the service's mode: registries write any case, and more than one name.
func TestPlatformsAreReadAlikeInEveryMode(t *testing.T) {
	m := cluster(t, 2)
	m.nodes["n2"].desc.Platform.Arch = "arm64"
	m.putNode("n2")
	on := func(name string, set func(*skepv1.ServiceSpec)) {
		m.service(name, func(s *skepv1.ServiceSpec) {
			set(s)
			s.Task.Placement = &skepv1.Placement{Platforms: []*skepv1.Platform{{Os: "Linux", Arch: "X86_64"}}}
		})
	}
	on("g", func(s *skepv1.ServiceSpec) { setGlobal(s) })
	on("r", func(s *skepv1.ServiceSpec) { setReplicas(s, 2) })
	m.converge()
	is(t, m.wanted("g"), "[0@n1]")
	is(t, m.wanted("r"), "[1@n1 2@n1]")
}

package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	skepv1 "skep.dev/proto/skep/v1"
)

// A random cluster: services come, change and go, nodes die, return, drain, pause, shrink and are removed, tasks fail,
// plans are cut short. What must always hold is checked after every batch, and once the trouble ends everything comes
// to rest with every replica running or explained.
func TestRandomClusterReconverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSim(t)
		for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			m.node(fmt.Sprint("n", i))
		}
		t.Repeat(m.trouble())
		for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
			if m.nodes[id].live == skepv1.NodeState_NODE_STATE_DOWN && rapid.Bool().Draw(t, "return") {
				m.live(id, skepv1.NodeState_NODE_STATE_READY)
			}
		}
		m.converge()
		m.rest()
		for _, id := range slices.Sorted(maps.Keys(m.specs)) {
			m.control(id, func(c *skepv1.RolloutControl) { c.Paused, c.Canary, c.Resume = false, 0, c.Resume+1 })
		}
		m.converge()
		m.rest()
	})
}

// trouble is what may happen to a cluster.
func (m *sim) trouble() map[string]func(*rapid.T) {
	nodeID := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("n", rapid.IntRange(0, 5).Draw(t, "node")) })
	svcID := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("s", rapid.IntRange(0, 3).Draw(t, "svc")) })
	return map[string]func(*rapid.T){
		"service": func(t *rapid.T) {
			id := svcID.Draw(t, "id")
			if m.specs[id] == nil && m.s.services[id] != nil {
				return // ids are never used twice
			}
			m.service(id, func(s *skepv1.ServiceSpec) { mutate(t, s, m.specs[id] == nil) })
		},
		"word": func(t *rapid.T) {
			id := svcID.Draw(t, "id")
			if m.specs[id] == nil {
				return
			}
			// How many canaries: of what is under way, and of the next update.
			m.canary = uint64(rapid.IntRange(0, 2).Draw(t, "canary"))
			m.control(id, func(c *skepv1.RolloutControl) {
				c.Paused, c.Canary = rapid.Bool().Draw(t, "paused"), m.canary
				c.Resume += uint64(rapid.IntRange(0, 1).Draw(t, "resume"))
			})
		},
		"remove service": func(t *rapid.T) { m.removeService(svcID.Draw(t, "id")) },
		"node": func(t *rapid.T) {
			id := nodeID.Draw(t, "id")
			n := m.node(id)
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0, 1:
				m.live(id, skepv1.NodeState_NODE_STATE_DOWN)
			case 2, 3:
				m.live(id, skepv1.NodeState_NODE_STATE_READY)
			case 4:
				m.live(id, skepv1.NodeState_NODE_STATE_UNKNOWN)
			case 5:
				n.obj.Spec.Availability = skepv1.Availability(rapid.IntRange(0, 2).Draw(t, "availability"))
				m.putNode(id)
			case 6:
				n.obj.Spec.Labels = map[string]string{"zone": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")}
				m.putNode(id)
			case 7:
				m.removeNode(id)
			}
		},
		"crash": func(t *rapid.T) {
			m.crash(nodeID.Draw(t, "id"), rapid.SampledFrom([]TaskState{Failed, Complete, Rejected}).Draw(t, "s"))
		},
		"health": func(t *rapid.T) {
			id := nodeID.Draw(t, "id")
			if m.nodes[id] == nil || m.nodes[id].silent {
				return
			}
			// Some fall ill, or all: what they depend on is broken.
			m.fallIll(id, rapid.IntRange(1, 3).Draw(t, "every"))
			m.agent(id)
		},
		"recover": func(*rapid.T) { clear(m.ill); m.agents() },
		"agent":   func(t *rapid.T) { m.agent(nodeID.Draw(t, "id")) },
		"agents":  func(*rapid.T) { m.agents() },
		"plan": func(t *rapid.T) {
			m.plan(rapid.SampledFrom([]int{1, 2, 1 << 30}).Draw(t, "most"), rapid.Bool().Draw(t, "feed"))
		},
		"time": func(t *rapid.T) {
			m.now = m.now.Add(time.Duration(rapid.IntRange(1, 70_000).Draw(t, "ms")) * time.Millisecond)
		},
	}
}

func (m *sim) agents() {
	for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
		m.agent(id)
	}
}

func mutate(t *rapid.T, s *skepv1.ServiceSpec, fresh bool) {
	if fresh && rapid.IntRange(0, 3).Draw(t, "global") == 0 {
		setGlobal(s)
	} else if s.Mode.GetGlobal() == nil {
		setReplicas(s, uint64(rapid.IntRange(0, 6).Draw(t, "replicas")))
	}
	switch rapid.IntRange(0, 11).Draw(t, "change") {
	case 11:
		s.Task.Resources.Reservations.Generic = rapid.SampledFrom([][]*skepv1.GenericResource{nil, {{Kind: "gpu", Value: 1}}, {{Kind: "ssd", Value: 2}}}).Draw(t, "generic")
	case 9:
		s.HealthBudget = uint64(rapid.IntRange(0, 3).Draw(t, "budget"))
		s.Task.Restart.MaxDelay = durationpb.New(time.Duration(rapid.IntRange(0, 2).Draw(t, "max delay")) * time.Minute)
	case 0, 1, 2:
		s.Task.Container.Image = fmt.Sprint("v", rapid.IntRange(1, 4).Draw(t, "image"))
	case 3:
		s.Task.Placement.Constraints = rapid.SampledFrom([][]string{nil, {"node.labels.zone==a"}, {"node.labels.zone!=b"}}).Draw(t, "constraints")
	case 4:
		s.Task.Resources.Reservations.NanoCpus = rapid.SampledFrom([]int64{0, 1e9, 3e9}).Draw(t, "cpu")
	case 5:
		s.Task.Placement.MaxReplicasPerNode = uint64(rapid.IntRange(0, 2).Draw(t, "max"))
	case 6:
		s.Endpoint.Ports = nil
		if rapid.Bool().Draw(t, "port") {
			s.Endpoint.Ports = []*skepv1.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST,
				HostIp: rapid.SampledFrom([]string{"", "10.0.0.1", "10.0.0.2"}).Draw(t, "host ip")}}
		}
	case 7:
		s.Update.Parallelism = uint64(rapid.IntRange(0, 2).Draw(t, "parallelism"))
		s.Update.Order = skepv1.UpdateOrder(rapid.IntRange(1, 2).Draw(t, "order"))
		s.Update.Delay = durationpb.New(time.Duration(rapid.IntRange(0, 1).Draw(t, "delay")) * 7 * time.Second)
	case 8:
		s.Task.Placement.Preferences = []*skepv1.PlacementPreference{{Spread: "node.labels.zone"}}
	case 10:
		s.DependsOn = nil
		if on := fmt.Sprint("s", rapid.IntRange(0, 3).Draw(t, "on")); on < s.Name { // no circles: state refuses them
			s.DependsOn = []*skepv1.Dependency{{Service: on, Condition: skepv1.Dependency_Condition(rapid.IntRange(1, 2).Draw(t, "condition"))}}
		}
	}
}

// rest checks a cluster that came to rest.
func (m *sim) rest() {
	m.fatal.Helper()
	for _, v := range m.s.services {
		if !v.Exists {
			for _, t := range v.tasks {
				if n := t.Node(); t.Desired != Remove || n == nil || !n.Exists || n.State != skepv1.NodeState_NODE_STATE_DOWN {
					m.dump()
					m.fatal.Fatalf("task %s of a removed service is left", t.ID)
				}
			}
			continue
		}
		slots := map[string]int{}
		for _, t := range v.tasks {
			if !t.wanted() {
				continue
			}
			n := t.Node()
			key := fmt.Sprint(t.Slot)
			if v.perNode() {
				key = (&planner{s: m.s}).unitNode(t).ID
			}
			slots[key]++
			blocked := v.unfinished()
			switch {
			case n == nil:
				if t.more().Err == "" {
					m.dump()
					m.fatal.Fatalf("task %s waits without a reason", t.ID)
				}
				if v.perNode() && !m.s.nodes[key].accepts() {
					continue // nothing begins there, so its reason stands
				}
				if strings.HasPrefix(t.more().Err, "waits for service") && (m.s.waits(v, m.now.UnixMilli()) != t.more().Err || t.more().Replaces != "") {
					m.dump()
					m.fatal.Fatalf("task %s %s, which is not so", t.ID, t.more().Err)
				}
			case t.State() != Running && !blocked && !(v.perNode() && !n.accepts()) && n.State != skepv1.NodeState_NODE_STATE_UNKNOWN && n.State != skepv1.NodeState_NODE_STATE_DOWN:
				m.dump()
				m.fatal.Fatalf("task %s on %s rests in state %v", t.ID, n.ID, t.State())
			case !v.perNode() && (n.lost() || n.drained()):
				m.dump()
				m.fatal.Fatalf("task %s rests on %s", t.ID, n.ID)
			}
		}
		for k, n := range slots {
			if v.perNode() && m.s.nodes[k] != nil && !m.s.nodes[k].accepts() {
				continue // nothing begins or ends there
			}
			if n > 1 && !v.unfinished() {
				m.dump()
				m.fatal.Fatalf("%d tasks of %s unit %s", n, v.ID, k)
			}
		}
		if !v.perNode() && uint64(len(slots)) != v.replicas {
			m.dump()
			m.fatal.Fatalf("%s has %d slots of %d", v.ID, len(slots), v.replicas)
		}
		if !v.perNode() {
			continue
		}
		for _, n := range m.s.byID {
			if n.accepts() && v.wantsOn(n) && slots[n.ID] != 1 && (slots[n.ID] != 2 || !v.unfinished()) {
				m.dump()
				m.fatal.Fatalf("%s has %d tasks on %s", v.ID, slots[n.ID], n.ID)
			}
		}
	}
}

// unfinished: a rollout goes on, or waits for somebody, with its tasks as they are.
func (v *Service) unfinished() bool { return v.rollout != nil && !v.rollout.over() }

func (v *Service) wantsOn(n *Node) bool {
	for i := range v.limits {
		if !v.limits[i].Match(&n.attrs) {
			return false
		}
	}
	return true
}

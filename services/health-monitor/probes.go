package health

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/event"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/record"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
)

const (
	// remembered is how long one that does not lead keeps what it would have told: longer than a lease lives on after its
	// holder crashed.
	remembered = 30 * time.Second
	// maxRemembered bounds that, and what waits while the bus is slow.
	maxRemembered = 4096
	// eventsPerReport changes of one report are told one by one; beyond it those alike share an event.
	eventsPerReport = 32
	// maxMessage bytes of a probe's output go into an event: its end.
	maxMessage = 1 << 10
	// maxNames bounds the names of services that are kept.
	maxNames = 10_000
)

// health of a task, as it was reported last.
type probed struct {
	state    skepv1.HealthState
	notReady bool
}

// turn is a change of a task's health.
type turn struct {
	node, task string
	verb       string
	old, new   string
	output     string
	rev        uint64 // of the report
	tasks      int    // more than one: it stands for as many
	at         time.Time
}

// probes follows what the nodes report of their tasks' health and tells the changes, if its instance leads. One that
// does not leads on from what it heard: it knows the state of every task, and tells what was told in the last moments
// once more, under the keys that let the stream drop it.
type probes struct {
	s     *Service
	tasks *kv.Bucket
	spec  *kv.Bucket
	seed  maphash.Seed
	wake  chan struct{}
	names map[string]string // service id → name; of run alone

	mu      sync.Mutex
	known   map[string]map[uint64]probed // node → hash of a task's id; only tasks that have something to tell
	turns   []turn
	leading bool
	dropped int
}

func newProbes(s *Service) *probes {
	return &probes{
		s: s, tasks: kv.Open(s.js, subject.Task), spec: kv.Open(s.js, subject.Spec), seed: maphash.MakeSeed(),
		wake: make(chan struct{}, 1), names: map[string]string{}, known: map[string]map[uint64]probed{},
	}
}

// apply takes a step of the status bucket's feed.
func (p *probes) apply(d kv.Delta) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.Reset {
		there := map[string]bool{}
		for _, e := range d.Entries {
			there[e.Key] = !e.Deleted
		}
		for node := range p.known {
			if !there[node] {
				delete(p.known, node)
			}
		}
	}
	for _, e := range d.Entries {
		if e.Deleted {
			delete(p.known, e.Key)
			continue
		}
		if err := p.report(strings.Clone(e.Key), e.Value, e.Revision, d.Reset); err != nil {
			p.s.log.Error("unreadable status", zap.String("node", e.Key), zap.Error(err))
		}
	}
	p.forget(time.Now())
	if p.leading && len(p.turns) > 0 {
		p.nudge()
	}
}

// report compares a node's tasks with what was known of them. Of one seen for the first time only what a probe decided
// is news, and not even that when the feed begins: it may be long ago.
func (p *probes) report(node string, raw []byte, rev uint64, first bool) error {
	was := p.known[node]
	var now map[uint64]probed
	told, begun := 0, len(p.turns)
	together := map[string]int{}
	err := record.EachStatus(raw, func(t *record.Status) {
		key := maphash.Bytes(p.seed, t.ID)
		old, known := was[key]
		is := probed{t.Health, t.NotReady}
		if is == (probed{}) && !known || t.State > skepv1.TaskState_TASK_STATE_RUNNING {
			return
		}
		if now == nil {
			now = map[uint64]probed{}
		}
		now[key] = is
		for _, c := range turns(old, is, known) {
			if !known && first {
				continue
			}
			c.node, c.task, c.rev, c.tasks, c.at = node, string(t.ID), rev, 1, time.Now()
			c.output = tail(string(t.HealthOutput))
			if told++; told > eventsPerReport {
				if i, ok := together[c.verb]; ok {
					p.turns[i].tasks++
					continue
				}
				together[c.verb] = len(p.turns)
			}
			p.turns = append(p.turns, c)
		}
	})
	if err != nil {
		p.turns = p.turns[:begun] // what is only partly known is not told
		return err
	}
	if now == nil {
		delete(p.known, node)
	} else {
		p.known[node] = now
	}
	return nil
}

// turns are the events a change amounts to.
func turns(old, is probed, known bool) []turn {
	var out []turn
	if is.state != old.state && (is.state == skepv1.HealthState_HEALTH_STATE_HEALTHY || is.state == skepv1.HealthState_HEALTH_STATE_UNHEALTHY) {
		out = append(out, turn{verb: spec.Word(is.state), old: spec.Word(old.state), new: spec.Word(is.state)})
	}
	if known && is.notReady != old.notReady { // one that was just made is not ready yet, which is no news
		t := turn{verb: "ready", old: "not-ready", new: "ready"}
		if is.notReady {
			t = turn{verb: "not-ready", old: "ready", new: "not-ready"}
		}
		out = append(out, t)
	}
	return out
}

// tail is the end of an output, as long as an event may be.
func tail(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxMessage {
		s = s[len(s)-maxMessage:]
	}
	return strings.Clone(strings.ToValidUTF8(s, ""))
}

// forget drops what need not be told any more.
func (p *probes) forget(now time.Time) {
	n := 0
	if !p.leading {
		for n < len(p.turns) && now.Sub(p.turns[n].at) > remembered {
			n++
		}
	}
	if over := len(p.turns) - maxRemembered; over > n {
		if p.leading {
			p.dropped += over - n
		}
		n = over
	}
	p.turns = append(p.turns[:0], p.turns[n:]...)
}

// lead begins or ends telling.
func (p *probes) lead(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(time.Now())
	p.leading = on
	p.nudge()
}

func (p *probes) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run tells, off the feed's goroutine: names have to be looked up.
func (p *probes) run(ctx context.Context) {
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		var todo []turn
		if p.leading {
			todo, p.turns = p.turns, nil
		}
		dropped := p.dropped
		p.dropped = 0
		p.mu.Unlock()
		if dropped > 0 {
			p.s.log.Warn("changes of tasks' health were not told: more at once than are kept", zap.Int("changes", dropped))
		}
		for len(todo) > 0 && ctx.Err() == nil {
			n := 1
			for n < len(todo) && todo[n].node == todo[0].node {
				n++
			}
			p.tell(ctx, todo[:n])
			todo = todo[n:]
		}
	}
}

// tell publishes changes of one node's tasks.
func (p *probes) tell(ctx context.Context, todo []turn) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	node := todo[0].node
	records, sure := p.records(ctx, node)
	host := p.host(ctx, node)
	for _, c := range todo {
		if sure && records[c.task] == nil && c.tasks == 1 {
			continue // another node's task, or nobody's: this one has no word on it
		}
		e := &skepv1.Event{
			Kind: "task", Id: c.task, Name: c.task, Verb: c.verb, Message: c.output, Actor: "skep-health",
			Attributes: map[string]string{"node": host, "node.id": node, "health.old": c.old, "health.new": c.new},
		}
		if r := records[c.task]; r != nil {
			svc := p.name(ctx, r.ServiceId)
			e.Attributes["service.id"], e.Attributes["service"] = r.ServiceId, svc
			e.Name = svc + "." + node
			if r.Slot != 0 {
				e.Name = fmt.Sprintf("%s.%d", svc, r.Slot)
			}
		}
		if c.tasks > 1 {
			e.Attributes["tasks"] = fmt.Sprint(c.tasks)
			e.Message = fmt.Sprintf("%d tasks on %s are %s", c.tasks, host, c.verb)
		}
		if err := event.PublishOnce(p.s.cfg.NC, e, fmt.Sprintf("health.%s.%s.%d", c.task, c.verb, c.rev)); err != nil {
			p.s.log.Warn("publish an event", zap.String("task", c.task), zap.Error(err))
		}
	}
}

// records are the tasks that the scheduler gave a node; not sure: they could not be read.
func (p *probes) records(ctx context.Context, node string) (out map[string]*skepv1.TaskRecord, sure bool) {
	set := &skepv1.NodeTasks{}
	e, err := p.tasks.Get(ctx, node)
	if err == nil && !e.Deleted {
		err = proto.Unmarshal(e.Value, set)
	}
	out = make(map[string]*skepv1.TaskRecord, len(set.Tasks))
	for _, r := range set.Tasks {
		out[r.Id] = r
	}
	return out, err == nil || errors.Is(err, kv.ErrNotFound)
}

// name is a service's; its names do not change, but services come and go.
func (p *probes) name(ctx context.Context, id string) string {
	if n, ok := p.names[id]; ok {
		return n
	}
	var v skepv1.Service
	e, err := p.spec.Get(ctx, keys.Service.Key(id))
	if err != nil || e.Deleted || proto.Unmarshal(e.Value, &v) != nil {
		return id
	}
	if len(p.names) >= maxNames {
		clear(p.names)
	}
	p.names[id] = v.GetSpec().GetName()
	return p.names[id]
}

// host is a node's name for people.
func (p *probes) host(ctx context.Context, id string) string {
	var n skepv1.NodeDescription
	if e, err := p.s.live.Get(ctx, keys.Description.Key(id)); err == nil && proto.Unmarshal(e.Value, &n) == nil && n.Hostname != "" {
		return n.Hostname
	}
	return id
}

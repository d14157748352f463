package engine

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/containers"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
)

// nodeEvents tells of the containers of this node as they change. It looks while somebody listens: each status says since when it
// is so, and a container that started and ended between two looks is told of as both.
type nodeEvents struct {
	mu   sync.Mutex
	subs map[int]func(*skepv1.Event)
	next int
	seen map[string]seenContainer
	stop context.CancelFunc
	over chan struct{}
}

// seenContainer is what was told of a container.
type seenContainer struct {
	c              containers.Container
	started, ended int64 // unix ms
	restarts       uint32
	health         skepv1.HealthState
}

func see(c containers.Container) seenContainer {
	st := c.Status
	out := seenContainer{c: c, started: st.GetStartedUnixMs(), restarts: st.GetRestarts(), health: st.GetHealth()}
	if out.started != 0 && st.GetState() > skepv1.TaskState_TASK_STATE_RUNNING {
		out.ended = st.GetSinceUnixMs()
	}
	return out
}

// listen has tell called for each event from now on, in order; the returned function ends that. tell must not wait.
func (x *nodeEvents) listen(n containers.Node, tell func(*skepv1.Event)) (leave func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.subs == nil {
		x.subs = map[int]func(*skepv1.Event){}
	}
	if len(x.subs) == 0 {
		ctx, cancel := context.WithCancel(context.Background())
		x.stop, x.over, x.seen = cancel, make(chan struct{}), map[string]seenContainer{}
		changed := n.Changed()
		for _, c := range n.Containers() {
			x.seen[c.ID()] = see(c)
		}
		go x.watch(ctx, n, changed, x.over)
	} else {
		x.lookLocked(n) // what changed before belongs to those who listened before
	}
	id := x.next
	x.next++
	x.subs[id] = tell
	return func() {
		x.mu.Lock()
		delete(x.subs, id)
		last, over := len(x.subs) == 0, x.over
		if last {
			x.stop()
		}
		x.mu.Unlock()
		if last {
			<-over
		}
	}
}

func (x *nodeEvents) watch(ctx context.Context, n containers.Node, changed <-chan struct{}, over chan struct{}) {
	defer close(over)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		changed = n.Changed() // before looking: what changes meanwhile is looked at again
		x.mu.Lock()
		if ctx.Err() == nil {
			x.lookLocked(n)
		}
		x.mu.Unlock()
	}
}

// lookLocked tells of what is not as it was.
func (x *nodeEvents) lookLocked(n containers.Node) {
	there := map[string]bool{}
	var out []*skepv1.Event
	for _, c := range n.Containers() {
		there[c.ID()] = true
		was, known := x.seen[c.ID()]
		out = append(out, since(n, was, known, c)...)
		x.seen[c.ID()] = see(c)
	}
	for id, was := range x.seen {
		if !there[id] {
			delete(x.seen, id)
			out = append(out, containerEvent(n, was.c, "destroy", time.Now().UnixMilli()))
		}
	}
	slices.SortStableFunc(out, byTime)
	for _, e := range out {
		for _, tell := range x.subs {
			tell(e)
		}
	}
}

// since are the events between two looks at a container.
func since(n containers.Node, was seenContainer, known bool, c containers.Container) (out []*skepv1.Event) {
	is := see(c)
	tell := func(action string, ms int64) { out = append(out, containerEvent(n, c, action, ms)) }
	if !known {
		tell("create", c.Record.GetCreatedUnixMs())
	}
	if is.restarts > was.restarts { // it ended and began anew; when it ended is not kept
		if was.started != 0 && was.ended == 0 {
			tell("die", is.started)
		}
		tell("start", is.started)
	} else if was.started == 0 && is.started != 0 {
		tell("start", is.started)
	}
	if is.ended != 0 && (was.ended != is.ended) {
		tell("die", is.ended)
	} else if is.health != was.health && is.started != 0 && is.health != skepv1.HealthState_HEALTH_STATE_NONE {
		tell("health_status: "+string(translate.ContainerHealth(c)), time.Now().UnixMilli())
	}
	return out
}

// pastOfNode are the events of the containers that are still known, as far as their status tells.
func pastOfNode(n containers.Node) (out []*skepv1.Event) {
	for _, c := range n.Containers() {
		for _, e := range since(n, seenContainer{}, false, c) {
			if e.Verb == "create" || e.Verb == "start" || e.Verb == "die" {
				out = append(out, e)
			}
		}
	}
	return out
}

// containerEvent is an event in the form that those of the cluster have, so that both are told in one stream.
func containerEvent(n containers.Node, c containers.Container, action string, ms int64) *skepv1.Event {
	view := viewOf(n)
	attributes := translate.ContainerLabels(c, view)
	attributes["image"], attributes["name"] = c.Revision.GetSpec().GetTask().GetContainer().GetImage(), translate.ContainerName(c, view)
	if action == "die" {
		attributes["exitCode"] = strconv.Itoa(int(c.Status.GetExitCode()))
	}
	return &skepv1.Event{Kind: translate.KindContainer, Id: c.ID(), Verb: action, Attributes: attributes, Time: timestamppb.New(time.UnixMilli(ms))}
}

package state

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// putRollout plays the scheduler.
func (r *rig) putRollout(service string, o *skepv1.Rollout) {
	r.t.Helper()
	body, err := proto.Marshal(o)
	if err != nil {
		r.t.Fatal(err)
	}
	rev, err := kv.Open(r.s.js, subject.Task).Put(r.ctx(), "rollout."+service, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.s.feeds.Of(subject.Task).Wait(r.ctx(), rev); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) steer(action skepv1.RolloutRequest_Action) (*skepv1.Service, error) {
	reply, err := call(r, api.ServiceRollout, &skepv1.RolloutRequest{Ref: "web", Action: action})
	return reply.GetService(), err
}

func TestSteerARollout(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	svc := r.mustCreate("web", 3)
	update := func(q *skepv1.UpdateServiceRequest) (*skepv1.Service, error) {
		q.Ref, q.NoResolveImage = "web", true
		reply, err := call(r, api.ServiceUpdate, q)
		return reply.GetService(), err
	}
	image := func(v string) *skepv1.ServiceSpec {
		s := webSpec("web", 3)
		s.Task.Container.Image = v
		return s
	}
	state := func(revision, stable uint64, state string) {
		o := &skepv1.Rollout{Revision: revision, Stable: stable, Status: &skepv1.UpdateStatus{State: state, Message: "for a reason"}}
		if state == "completed" {
			o.Status.CompletedAt = timestamppb.Now()
		}
		r.putRollout(svc.Meta.Id, o)
	}
	const (
		pause   = skepv1.RolloutRequest_ACTION_PAUSE
		resume  = skepv1.RolloutRequest_ACTION_RESUME
		promote = skepv1.RolloutRequest_ACTION_PROMOTE
		abort   = skepv1.RolloutRequest_ACTION_ABORT
	)
	refused := func(a skepv1.RolloutRequest_Action, text string) {
		t.Helper()
		_, err := r.steer(a)
		wantErr(t, err, text)
	}
	refused(pause, "service web is not being updated: there is nothing to pause")
	refused(resume, "service web has no paused update to resume")
	refused(promote, "service web has no canary to promote")
	refused(abort, "service web is not being updated: there is nothing to abort; to go back all the same use rollback")

	v2 := must[*skepv1.Service](t)(update(&skepv1.UpdateServiceRequest{Spec: image("web:2"), Canary: 1}))
	if v2.Control.GetCanary() != 1 || v2.Control.GetResume() == 0 {
		t.Fatalf("the control of an update with a canary: %v", v2.Control)
	}
	// It counts as under way before the scheduler has looked at it.
	paused := must[*skepv1.Service](t)(r.steer(pause))
	if !paused.Control.Paused || paused.Control.Canary != 1 || paused.Revision != 2 {
		t.Fatalf("paused: %v", paused)
	}
	state(2, 1, "paused")
	refused(pause, "service web: its update is paused already")
	refused(promote, "service web: its canary is paused (for a reason); resume it first with --resume, or abort it")
	// Scaling is not a word about the rollout, a change of the spec is.
	scaled := must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 4})).Service
	if !scaled.Control.GetPaused() {
		t.Errorf("a scale resumed the update: %v", scaled.Control)
	}
	on := must[*skepv1.Service](t)(r.steer(resume))
	if on.Control.Paused || on.Control.Resume <= paused.Control.Resume || on.Control.Canary != 1 {
		t.Fatalf("resumed: %v", on.Control)
	}
	state(2, 1, "canary")
	if got := must[*skepv1.Service](t)(r.steer(promote)); got.Control.Canary != 0 {
		t.Fatalf("promoted: %v", got.Control)
	}

	// An update of an update that is aborted goes back to what was good, and the scale stands.
	must[*skepv1.Service](t)(update(&skepv1.UpdateServiceRequest{Spec: image("web:3")}))
	state(3, 1, "updating")
	back := must[*skepv1.Service](t)(r.steer(abort))
	if back.Revision != 4 || back.RollbackTo != 1 || back.Spec.Task.Container.Image != "httpd:latest" || back.RollbackReason != "" {
		t.Fatalf("aborted: %v", back)
	}
	state(4, 1, "rollback_started")
	refused(abort, "service web is being rolled back already: pause or resume that, or update it")
	state(4, 1, "rollback_completed")

	// What the scheduler asks for holds for the revision that failed, and no other.
	must[*skepv1.Service](t)(update(&skepv1.UpdateServiceRequest{Spec: image("web:5")}))
	ask := &skepv1.UpdateServiceRequest{Rollback: true, RollbackRevision: 4, ExpectRevision: 4, Reason: "update rolled back due to failure"}
	_, err := update(proto.CloneOf(ask))
	wantErr(t, err, "update out of sequence")
	ask.ExpectRevision = 5
	got := must[*skepv1.Service](t)(update(ask))
	if got.RollbackReason != ask.Reason || got.RollbackTo != 4 {
		t.Fatalf("rolled back by itself: %v", got)
	}
	revs := must[*skepv1.ListRevisionsReply](t)(call(r, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: "web"})).Revisions
	if revs[0].Reason != ask.Reason || revs[1].Reason != "" {
		t.Errorf("the reasons in the history: %v", revs)
	}
	_, err = update(&skepv1.UpdateServiceRequest{Rollback: true, Canary: 1})
	wantErr(t, err, "a rollback has no canary: what it goes back to is known")
}

// What cannot be gone back to is refused by name, before anything changes.
func TestRollbackToANetworkThatIsGone(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	r.mustNetwork("front")
	s := webSpec("web", 1)
	s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "front"}}
	if _, err := r.create(s); err != nil {
		t.Fatal(err)
	}
	next := webSpec("web", 1)
	next.Task.Container.Image = "web:2"
	update := func(q *skepv1.UpdateServiceRequest) (*skepv1.Service, error) {
		q.Ref, q.NoResolveImage = "web", true
		reply, err := call(r, api.ServiceUpdate, q)
		return reply.GetService(), err
	}
	v2 := must[*skepv1.Service](t)(update(&skepv1.UpdateServiceRequest{Spec: next}))
	if _, err := call(r, api.NetworkRemove, &skepv1.Ref{Ref: "front"}); err != nil {
		t.Fatal(err)
	}
	_, err := update(&skepv1.UpdateServiceRequest{Rollback: true, ExpectRevision: 2, Reason: "it failed"})
	if code := fault.Of(err); code != fault.CodeNotFound && code != fault.CodeInvalid {
		t.Errorf("refused with %s: the scheduler takes that for something that may pass", code)
	}
	wantErr(t, err, "revision 1 needs network front, which is gone: create it again, or go back to another revision")
	if now := must[*skepv1.Service](t)(r.inspect("web")); now.Revision != 2 || now.Meta.Version != v2.Meta.Version {
		t.Errorf("the service changed: %v", now)
	}
	again := r.mustNetwork("front")
	back := must[*skepv1.Service](t)(update(&skepv1.UpdateServiceRequest{Rollback: true}))
	if n := back.Spec.Task.Networks; len(n) != 1 || n[0].Target != again.Meta.Id {
		t.Errorf("rolled back onto %v, want the network that is called front now", n)
	}
}

// Going back from a second attempt that failed leads to what was good, not to the first one; going back from what stands
// leads to the one before.
func TestRollbackGoesToWhatWasGood(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	svc := r.mustCreate("web", 3)
	update := func(image string) uint64 {
		t.Helper()
		q := &skepv1.UpdateServiceRequest{Ref: "web", NoResolveImage: true, Rollback: image == ""}
		if image != "" {
			q.Spec = webSpec("web", 3)
			q.Spec.Task.Container.Image = image
		}
		reply := must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, q))
		if image == "" {
			return reply.Service.RollbackTo
		}
		return reply.Service.Revision
	}
	state := func(revision, stable uint64, state string) {
		o := &skepv1.Rollout{Revision: revision, Stable: stable, Status: &skepv1.UpdateStatus{State: state}}
		if state == "completed" || state == "rollback_completed" {
			o.Status.CompletedAt = timestamppb.Now()
		}
		r.putRollout(svc.Meta.Id, o)
	}
	update("web:2")
	state(2, 1, "paused")
	update("web:3")
	state(3, 1, "paused")
	if to := update(""); to != 1 {
		t.Errorf("after two that failed: back to revision %d", to)
	}
	state(4, 1, "rollback_started")
	if to := update(""); to != 3 {
		t.Errorf("a rollback under way that is rolled back leads to revision %d", to)
	}
	update("web:6")
	state(6, 1, "completed")
	update("web:7")
	state(7, 6, "completed")
	if to := update(""); to != 6 {
		t.Errorf("from what stands back to revision %d", to)
	}
}

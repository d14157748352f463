package state

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	skepv1 "skep.dev/proto/skep/v1"
)

// Twenty people look at one service and change it, each something else, and somebody scales it meanwhile: all succeed, and
// all is there. Two who change the same thing are told which.
func TestManyWritersOfOneServiceR1(t *testing.T) { manyWriters(t, newRig(t, kvtest.Server(t))) }
func TestManyWritersOfOneServiceR3(t *testing.T) { manyWriters(t, newRig(t, kvtest.Cluster(t, 3))) }

func manyWriters(t *testing.T, r *rig) {
	svc := r.mustCreate("web", 3)
	const writers = 20
	errs := make([]error, writers+1)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			want := proto.CloneOf(svc.Spec)
			c := want.Task.Container
			switch i {
			case 0:
				c.Image = "httpd:2"
			case 1:
				want.Update.Parallelism = 4
			case 2:
				c.Mounts = append(c.Mounts, &skepv1.Mount{Source: "v", Target: "/v"})
			default:
				c.Env = append(c.Env, fmt.Sprintf("N%d=%d", i, i))
			}
			_, errs[i] = call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Version: svc.Meta.Version, Base: svc.Spec, Spec: want, NoResolveImage: true})
		})
	}
	wg.Go(func() {
		_, errs[writers] = call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 9})
	})
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	got := must[*skepv1.Service](t)(r.inspect("web"))
	c := got.Spec.Task.Container
	if c.Image != "httpd:2" || got.Spec.Update.Parallelism != 4 || len(c.Mounts) != 1 || len(c.Env) != writers-3 || got.Spec.Mode.GetReplicated().Replicas != 9 {
		t.Errorf("after all: %v", got.Spec)
	}

	change := func(image string) error {
		want := proto.CloneOf(svc.Spec)
		want.Task.Container.Image = image
		_, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Base: svc.Spec, Spec: want, NoResolveImage: true})
		return err
	}
	if err := change("httpd:2"); err != nil {
		t.Errorf("the same again: %v", err)
	}
	err := change("httpd:3")
	wantErr(t, err, "service web was changed by somebody else at the same time: image; look at what it is now, then try again")
	if !fault.Is(err, fault.CodeConflict) {
		t.Errorf("code %s", fault.Of(err))
	}
	// What each may do and both together may not.
	mem := func(r *skepv1.ResourceRequirements) *skepv1.UpdateServiceRequest {
		want := proto.CloneOf(svc.Spec)
		want.Task.Resources = r
		return &skepv1.UpdateServiceRequest{Ref: "web", Base: svc.Spec, Spec: want, NoResolveImage: true}
	}
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, mem(&skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 8 << 20}})))
	if _, err := call(r, api.ServiceUpdate, mem(&skepv1.ResourceRequirements{Reservations: &skepv1.Resources{MemoryBytes: 9 << 20}})); err == nil || !strings.Contains(err.Error(), "reserve-memory 9437184 is above limit-memory 8388608") {
		t.Errorf("a reservation above a limit that came meanwhile: %v", err)
	}
	// A rollback is of a revision, not of a version: a scale is none.
	now := must[*skepv1.Service](t)(r.inspect("web"))
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceScale, &skepv1.ScaleServiceRequest{Ref: "web", Replicas: 2}))
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Rollback: true, Version: now.Meta.Version, ExpectRevision: now.Revision}))
}

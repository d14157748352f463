package task

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
)

// After a restart a task that had not come to run waits for a manager's word when its volume may be another node's by now; others
// go on without.
func TestVolumesWaitForAManager(t *testing.T) {
	h := &harness{t: t, dir: t.TempDir(), rt: newFake()}
	open := func(prepare func(context.Context, *Job) error) {
		t.Helper()
		h.rt.prepare = prepare
		s, err := Open(Config{Dir: h.dir, Runtime: h.rt, Log: zap.NewNop(), Backoff: time.Millisecond, Specs: func(_ context.Context, svc string, rev uint64) (*skepv1.Revision, error) {
			c := &skepv1.ContainerSpec{}
			if svc == "db" {
				c.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_VOLUME, VolumeDriver: "rexray", Source: "data", Target: "/data"}}
			}
			return &skepv1.Revision{ServiceId: svc, Number: rev, Spec: &skepv1.ServiceSpec{Task: &skepv1.TaskSpec{Container: c}}}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		h.set = s
		s.Resume(nil)
		t.Cleanup(s.Close)
	}
	tried := make(chan struct{}, 100)
	open(func(context.Context, *Job) error {
		tried <- struct{}{}
		return Temporary(errors.New("no image yet"))
	})
	h.apply(&skepv1.TaskRecord{Id: "t1", ServiceId: "db", Desired: runningSt}, &skepv1.TaskRecord{Id: "t2", ServiceId: "web", Desired: runningSt})
	<-tried // what comes from a manager waits for nothing
	<-tried
	h.await("t1", preparing)
	h.await("t2", preparing)
	h.set.Close()
	open(nil)
	h.await("t2", runningSt)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		_, st := h.set.Job("t1")
		if strings.HasPrefix(st.GetMessage(), "waiting for a manager") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v", st)
		}
	}
	h.set.Confirm()
	h.set.Confirm()
	h.await("t1", runningSt)
}

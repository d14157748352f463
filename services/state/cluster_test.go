package state

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Autolock is on or off when the vault says so; the spec follows, and a vault that refuses leaves it as it was.
func TestAutolockIsTheVaults(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	srv, err := rpc.NewServer(r.nc, rpc.Config{Name: "vault"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() }) // the connection may be closed already
	var mu sync.Mutex
	var asked []bool
	var refuse error
	err = api.Handle(srv, api.AutolockSet, func(_ context.Context, q *skepv1.SetAutolockRequest) (*skepv1.AutolockState, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, q.On)
		if q.By == "" {
			t.Error("who asked is not said")
		}
		return &skepv1.AutolockState{On: q.On}, refuse
	})
	if err != nil {
		t.Fatal(err)
	}
	c := must[*skepv1.ClusterReply](t)(call(r, api.ClusterInspect, &skepv1.Empty{})).Cluster
	update := func(version uint64, change func(*skepv1.ClusterSpec)) error {
		t.Helper()
		change(c.Spec)
		reply, err := call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: version, Spec: c.Spec})
		if err == nil {
			c = reply.Cluster
		} else {
			c = must[*skepv1.ClusterReply](t)(call(r, api.ClusterInspect, &skepv1.Empty{})).Cluster
		}
		return err
	}
	on := func(s *skepv1.ClusterSpec) { s.Autolock = true }
	off := func(s *skepv1.ClusterSpec) { s.Autolock = false }
	refuse = fault.Locked("the cluster's secrets are locked: run skep unlock on m1")
	if err := update(c.Meta.Version, on); !fault.Is(err, fault.CodeLocked) || c.Spec.Autolock {
		t.Errorf("while locked: %v, %v", err, c.Spec)
	}
	refuse = nil
	if err := update(c.Meta.Version, on); err != nil || !c.Spec.Autolock {
		t.Errorf("on: %v", err)
	}
	if err := update(c.Meta.Version, func(s *skepv1.ClusterSpec) { s.TaskHistoryLimit = 3 }); err != nil {
		t.Error(err)
	}
	wantErr(t, update(0, off), "update the cluster: a spec without autolock would turn it off and have the master key in clear on every manager: read the cluster, change its spec, and send the version it had")
	if err := update(c.Meta.Version, off); err != nil || c.Spec.Autolock {
		t.Errorf("off: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 3 || !asked[0] || !asked[1] || asked[2] {
		t.Errorf("the vault was asked %v", asked)
	}
}

// When a schedule was set is state's to say: by it every manager knows the same times.
func TestBackupPlanIsCountedFromWhenItWasSet(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	c := must[*skepv1.ClusterReply](t)(call(r, api.ClusterInspect, &skepv1.Empty{})).Cluster
	update := func(p *skepv1.BackupPlan) error {
		t.Helper()
		s := proto.CloneOf(c.Spec)
		s.Backups = p
		reply, err := call(r, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: c.Meta.Version, Spec: s})
		if err == nil {
			c = reply.Cluster
		}
		return err
	}
	before := time.Now()
	if err := update(&skepv1.BackupPlan{Cron: "@every 6h", Since: timestamppb.New(time.Unix(1, 0))}); err != nil {
		t.Fatal(err)
	}
	first := c.Spec.Backups.Since.AsTime()
	if first.Before(before) || c.Spec.Backups.Keep != spec.DefaultBackupKeep {
		t.Error(c.Spec.Backups)
	}
	if err := update(&skepv1.BackupPlan{Cron: "@every 6h", Keep: 3}); err != nil || !c.Spec.Backups.Since.AsTime().Equal(first) || c.Spec.Backups.Keep != 3 {
		t.Error(c.Spec.Backups, err)
	}
	if err := update(&skepv1.BackupPlan{Cron: "@every 12h", Keep: 3}); err != nil || !c.Spec.Backups.Since.AsTime().After(first) {
		t.Error(c.Spec.Backups, err)
	}
	if err := update(&skepv1.BackupPlan{Cron: "@every 1s", Keep: 3}); !fault.Is(err, fault.CodeInvalid) || c.Spec.Backups.Cron != "@every 12h" {
		t.Error(c.Spec.Backups, err)
	}
	if err := update(nil); err != nil || c.Spec.Backups != nil {
		t.Error(c.Spec.Backups, err)
	}
}

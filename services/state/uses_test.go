package state

import (
	"context"
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// TestUsesOfASecret: the service, and the tasks that have it unless they are not wanted: there may be thousands.
func TestUsesOfASecret(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	srv, err := rpc.NewServer(r.nc, rpc.Config{Name: "vault"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() }) // the connection may be closed already
	err = api.Handle(srv, api.FilesResolve, func(_ context.Context, q *skepv1.ResolveFilesRequest) (*skepv1.ResolveFilesReply, error) {
		for _, f := range q.Secrets {
			f.Id, f.Version = "id-of-"+f.Name, 2
		}
		return &skepv1.ResolveFilesReply{Secrets: q.Secrets, Configs: q.Configs}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sp := webSpec("web", 1)
	sp.Task.Container.Secrets = []*skepv1.FileReference{{Name: "key", Target: "key"}}
	svc := must[*skepv1.ServiceReply](t)(r.create(sp)).Service
	node := r.admit("w1", skepv1.NodeRole_NODE_ROLE_WORKER).Meta.Id
	gen := r.putTasks(node, &skepv1.TaskRecord{Id: "t1", ServiceId: svc.Meta.Id, Slot: 1, Revision: 1, Desired: skepv1.TaskState_TASK_STATE_RUNNING})
	must[*skepv1.StatusReply](t)(r.report(node, &skepv1.NodeStatus{NodeId: node, Report: 1, Session: "s", AppliedGeneration: gen,
		Tasks: []*skepv1.TaskStatus{{TaskId: "t1", State: skepv1.TaskState_TASK_STATE_RUNNING, Files: []*skepv1.HeldFile{{Id: "id-of-key", Version: 1}}}}}))

	for _, brief := range []bool{false, true} {
		u := must[*skepv1.SecretUsesReply](t)(call(r, api.FilesUses, &skepv1.SecretUsesRequest{Ids: []string{"id-of-key", "id-of-none"}, Brief: brief})).Uses
		if len(u["id-of-none"].GetUses()) != 0 || len(u["id-of-key"].GetUses()) != 1 {
			t.Fatalf("uses: %v", u)
		}
		use := u["id-of-key"].Uses[0]
		if use.ServiceName != "web" || use.Version != 2 {
			t.Errorf("use: %v", use)
		}
		if brief && len(use.Holders) != 0 || !brief && (len(use.Holders) != 1 || use.Holders[0].NodeHostname != "w1" || use.Holders[0].Version != 1) {
			t.Errorf("brief %v: held by %v", brief, use.Holders)
		}
	}
}

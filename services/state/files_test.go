package state

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// fileOf is a spec's first reference to an object, nil if it has none.
func fileOf(s *skepv1.ServiceSpec, object string) *skepv1.FileReference {
	for _, f := range filesOf(s, object) {
		return f
	}
	return nil
}

const (
	aSecret = skepv1.SecretKind_SECRET_KIND_SECRET
	aConfig = skepv1.SecretKind_SECRET_KIND_CONFIG
)

// fakeVault knows objects by name as the vault does; its values are nobody's business here.
type fakeVault struct {
	mu      sync.Mutex
	objects map[string]*skepv1.FileReference // by id; Version is the newest
	kinds   map[string]skepv1.SecretKind
}

func idOf(name string) string { return strings.Repeat("0", 20) + name }

func (r *rig) vault() *fakeVault {
	r.t.Helper()
	v := &fakeVault{objects: map[string]*skepv1.FileReference{}, kinds: map[string]skepv1.SecretKind{}}
	srv, err := rpc.NewServer(r.n.Conn(r.t), rpc.Config{Name: "skep-vault"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = srv.Close() })
	if err := api.Handle(srv, api.FilesResolve, v.resolve); err != nil {
		r.t.Fatal(err)
	}
	await(r.t, "the vault", func() bool {
		_, err := call(r, api.FilesResolve, &skepv1.ResolveFilesRequest{})
		return err == nil
	})
	return v
}

func (v *fakeVault) put(kind skepv1.SecretKind, name string, version uint64) *skepv1.FileReference {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.objects[idOf(name)] = &skepv1.FileReference{Id: idOf(name), Name: name, Version: version}
	v.kinds[idOf(name)] = kind
	return &skepv1.FileReference{Name: name, Mode: 0o444}
}

func (v *fakeVault) drop(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.objects, idOf(name))
}

func (v *fakeVault) resolve(_ context.Context, r *skepv1.ResolveFilesRequest) (*skepv1.ResolveFilesReply, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	find := func(kind skepv1.SecretKind, list []*skepv1.FileReference) (out []*skepv1.FileReference, err error) {
		for _, f := range list {
			f, id := proto.CloneOf(f), f.Id
			if id == "" {
				id = idOf(f.Name)
			}
			o := v.objects[id]
			if o == nil || v.kinds[id] != kind {
				return nil, fault.Invalid("%s not found: %s", spec.KindWord(kind), f.Name)
			}
			if f.Version > o.Version {
				return nil, fault.Invalid("%s %s has no version %d", spec.KindWord(kind), f.Name, f.Version)
			}
			if f.Version == 0 {
				f.Version = o.Version
			}
			f.Id, f.Name = o.Id, o.Name
			out = append(out, f)
		}
		return out, nil
	}
	out := &skepv1.ResolveFilesReply{}
	var err error
	if out.Secrets, err = find(aSecret, r.Secrets); err != nil {
		return nil, err
	}
	out.Configs, err = find(aConfig, r.Configs)
	return out, err
}

func withFiles(name string, secrets, configs []*skepv1.FileReference) *skepv1.ServiceSpec {
	s := webSpec(name, 2)
	s.Task.Container.Secrets, s.Task.Container.Configs = secrets, configs
	return s
}

func refs(f ...*skepv1.FileReference) []*skepv1.FileReference { return f }

func (r *rig) mustCreateSpec(s *skepv1.ServiceSpec) *skepv1.Service {
	r.t.Helper()
	return must[*skepv1.ServiceReply](r.t)(r.create(s)).Service
}

func (r *rig) updateSpec(s *skepv1.ServiceSpec) (*skepv1.Service, error) {
	reply, err := call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: s.Name, Spec: s, NoResolveImage: true})
	return reply.GetService(), err
}

func (r *rig) roll(name string, version uint64) []string {
	r.t.Helper()
	out := must[*skepv1.RollSecretReply](r.t)(call(r, api.FilesRoll, &skepv1.RollSecretRequest{Id: idOf(name), Name: name, Kind: aSecret, Version: version, Author: "user-ann"}))
	slices.Sort(out.Services)
	return out.Services
}

func (r *rig) version(service, object string) uint64 {
	r.t.Helper()
	return fileOf(must[*skepv1.Service](r.t)(r.inspect(service)).Spec, idOf(object)).GetVersion()
}

func TestReferencesToSecrets(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	_, err := r.create(withFiles("early", refs(&skepv1.FileReference{Name: "pw"}), nil))
	if !fault.Is(err, fault.CodeUnavailable) {
		t.Errorf("no vault answers: %v", err)
	}
	v := r.vault()
	pw, conf := v.put(aSecret, "pw", 3), v.put(aConfig, "conf", 1)
	pinned := func(n uint64) *skepv1.FileReference {
		return &skepv1.FileReference{Name: "pw", Version: n, Pinned: true, Mode: 0o444}
	}
	for want, sp := range map[string]*skepv1.ServiceSpec{
		"secret not found: none":     withFiles("bad", refs(pw, &skepv1.FileReference{Name: "none"}), nil),
		"secret not found: conf":     withFiles("bad", refs(conf), nil),
		"config not found: pw":       withFiles("bad", nil, refs(pw)),
		"secret pw has no version 4": withFiles("bad", refs(pinned(4)), nil),
		"secret: source is required": withFiles("bad", refs(&skepv1.FileReference{Target: "x"}), nil),
		"secret references 'pw' and 'pw' have a conflicting target: 'pw'":                withFiles("bad", refs(pw, pw), nil),
		"config references 'pw' and 'conf' have a conflicting target: '/run/secrets/pw'": withFiles("bad", refs(pw), refs(&skepv1.FileReference{Name: "conf", Target: "/run/secrets/pw"})),
		"secret 00000000000000000000pw: a reference by id alone needs a target":          withFiles("bad", refs(&skepv1.FileReference{Id: idOf("pw")}), nil),
		`invalid secret target "../x": it must not contain ..`:                           withFiles("bad", refs(&skepv1.FileReference{Name: "pw", Target: "../x"}), nil),
		`invalid secret-update-signal "nope": use a name such as SIGHUP, or 1 to 64`: func() *skepv1.ServiceSpec {
			s := withFiles("bad", refs(pw), nil)
			s.Task.Container.SecretUpdateSignal = "nope"
			return s
		}(),
	} {
		if _, err := r.create(sp); err == nil || err.Error() != want || !fault.Is(err, fault.CodeInvalid) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	for _, name := range []string{"early", "bad"} {
		if _, err := r.inspect(name); !fault.Is(err, fault.CodeNotFound) {
			t.Errorf("%s was made: %v", name, err)
		}
	}
	svc := r.mustCreateSpec(withFiles("web", refs(pw, &skepv1.FileReference{Id: idOf("pw"), Target: "/again"}), refs(conf)))
	c := svc.Spec.Task.Container
	for i, want := range []string{"pw", "/again"} {
		if f := c.Secrets[i]; f.Id != idOf("pw") || f.Name != "pw" || f.Version != 3 || f.Pinned || f.Target != want {
			t.Errorf("stored: %v", f)
		}
	}
	if f := c.Configs[0]; f.Id != idOf("conf") || f.Version != 1 || f.Target != "conf" {
		t.Errorf("stored: %v", f)
	}
	// A name means what it meant when the service was stored: another object of that name is not taken for it.
	v.put(aSecret, "pw", 5)
	next := proto.CloneOf(svc.Spec)
	next.Task.Container.Env = []string{"a=b"}
	svc = must[*skepv1.Service](t)(r.updateSpec(next))
	if got := fileOf(svc.Spec, idOf("pw")).Version; got != 3 {
		t.Errorf("an update of something else brings version %d", got)
	}
	// Removed, added, pinned.
	next = proto.CloneOf(svc.Spec)
	next.Task.Container.Secrets, next.Task.Container.Configs = refs(pinned(2)), nil
	svc = must[*skepv1.Service](t)(r.updateSpec(next))
	if f := fileOf(svc.Spec, idOf("pw")); f.Version != 2 || !f.Pinned || fileOf(svc.Spec, idOf("conf")) != nil {
		t.Errorf("stored: %v", svc.Spec.Task.Container)
	}
	// The revision that used the config cannot be gone back to once that is gone, and says so before anything changes.
	v.drop("conf")
	_, err = call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Rollback: true})
	if err == nil || err.Error() != "go back to revision 2: config not found: conf" {
		t.Errorf("rollback: %v", err)
	}
	if now := must[*skepv1.Service](t)(r.inspect("web")); now.Revision != svc.Revision {
		t.Errorf("revision %d became %d", svc.Revision, now.Revision)
	}
	v.put(aConfig, "conf", 1)
	back := must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Rollback: true})).Service
	if f := fileOf(back.Spec, idOf("pw")); f.Version != 3 {
		t.Errorf("gone back to %v", f)
	}
}

func TestRollOfASecret(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	v := r.vault()
	pw := v.put(aSecret, "pw", 1)
	follows := r.mustCreateSpec(withFiles("follows", refs(pw), nil))
	r.mustCreateSpec(withFiles("pins", refs(&skepv1.FileReference{Name: "pw", Version: 1, Pinned: true}), nil))
	r.mustCreate("other", 1)
	v.put(aSecret, "pw", 2)
	r.mustCreateSpec(withFiles("newer", refs(pw), nil))

	if got := r.roll("pw", 2); !slices.Equal(got, []string{"follows"}) {
		t.Errorf("version 2 comes to %v", got)
	}
	for service, want := range map[string]uint64{"follows": 2, "pins": 1, "newer": 2} {
		if got := r.version(service, "pw"); got != want {
			t.Errorf("%s has version %d, want %d", service, got, want)
		}
	}
	if got := r.roll("pw", 2); len(got) != 0 {
		t.Errorf("again: it comes to %v", got)
	}
	list := must[*skepv1.ListRevisionsReply](t)(call(r, api.ServiceRevisions, &skepv1.ListRevisionsRequest{Ref: "follows"})).Revisions
	if i := slices.IndexFunc(list, func(x *skepv1.Revision) bool { return x.Number == 2 }); i < 0 || list[i].Author != "user-ann" || list[i].Summary != "version 2 of secret pw" {
		t.Errorf("revisions: %v", list)
	}
	// Who went back is left where it is, and gets the next one.
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "follows", Rollback: true}))
	if got := r.roll("pw", 2); len(got) != 0 || r.version("follows", "pw") != 1 {
		t.Errorf("gone back and given version 2 again: %v", got)
	}
	v.put(aSecret, "pw", 3)
	if got := r.roll("pw", 3); !slices.Equal(got, []string{"follows", "newer"}) {
		t.Errorf("version 3 comes to %v", got)
	}
	if got := must[*skepv1.Service](t)(r.inspect("follows")); got.Meta.Id != follows.Meta.Id || got.Spec.Mode.GetReplicated().Replicas != 2 {
		t.Errorf("more than the version changed: %v", got)
	}
}

// The old key beside the new one, as for a rotation: only the place that follows the secret gets newer versions.
func TestRollOfOneSecretInTwoPlaces(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	v := r.vault()
	v.put(aSecret, "pw", 2)
	r.mustCreateSpec(withFiles("web", refs(&skepv1.FileReference{Name: "pw", Target: "old", Version: 1, Pinned: true}, &skepv1.FileReference{Name: "pw", Target: "new"}, &skepv1.FileReference{Name: "pw", Target: "/also"}), nil))
	v.put(aSecret, "pw", 3)
	if got := r.roll("pw", 3); len(got) != 1 {
		t.Errorf("it comes to %v", got)
	}
	var versions []uint64
	for _, f := range must[*skepv1.Service](t)(r.inspect("web")).Spec.Task.Container.Secrets {
		versions = append(versions, f.Version)
	}
	if !slices.Equal(versions, []uint64{1, 3, 3}) {
		t.Errorf("versions %v", versions)
	}
	u := must[*skepv1.SecretUsesReply](t)(call(r, api.FilesUses, &skepv1.SecretUsesRequest{Ids: []string{idOf("pw")}})).Uses[idOf("pw")].GetUses()
	if len(u) != 1 || u[0].Version != 3 || u[0].Pinned || !slices.Equal(u[0].Versions, []uint64{1, 3, 2}) {
		t.Errorf("uses: %v", u)
	}
}

// A canary that is being watched stays a canary: a new version of a secret is no word to promote it.
func TestRollLeavesACanaryOne(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	v := r.vault()
	svc := r.mustCreateSpec(withFiles("web", refs(v.put(aSecret, "pw", 1)), nil))
	next := proto.CloneOf(svc.Spec)
	next.Task.Container.Image = "httpd:canary"
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Spec: next, Canary: 1, NoResolveImage: true}))
	r.putRollout(svc.Meta.Id, &skepv1.Rollout{Revision: 2, Stable: 1, Status: &skepv1.UpdateStatus{State: "updating"}})
	v.put(aSecret, "pw", 2)
	if got := r.roll("pw", 2); len(got) != 1 {
		t.Fatalf("it comes to %v", got)
	}
	if got := r.s.ix.Service(svc.Meta.Id); got.Control.GetCanary() != 1 || got.Spec.Task.Container.Image != "httpd:canary" || got.Revision != 3 {
		t.Errorf("control %v, image %s, revision %d", got.Control, got.Spec.Task.Container.Image, got.Revision)
	}
}

// Rolls and updates of people meet: each change is there in the end, and no version goes back.
func TestRollsDuringUpdates(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	v := r.vault()
	r.mustCreateSpec(withFiles("web", refs(v.put(aSecret, "pw", 1)), nil))
	const rounds = 12
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := uint64(2); n <= rounds; n++ {
			v.put(aSecret, "pw", n)
			if _, err := call(r, api.FilesRoll, &skepv1.RollSecretRequest{Id: idOf("pw"), Name: "pw", Kind: aSecret, Version: n}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for i := 0; i < rounds; {
			got, err := r.inspect("web")
			if err != nil {
				t.Error(err)
				return
			}
			got.Spec.Task.Container.Env = []string{fmt.Sprintf("N=%d", i)}
			_, err = call(r, api.ServiceUpdate, &skepv1.UpdateServiceRequest{Ref: "web", Version: got.Meta.Version, Spec: got.Spec, NoResolveImage: true})
			switch {
			case err == nil:
				i++
			case !fault.Is(err, fault.CodeSequence):
				t.Error(err)
				return
			}
		}
	})
	wg.Wait()
	got := must[*skepv1.Service](t)(r.inspect("web"))
	if f := fileOf(got.Spec, idOf("pw")); f.Version != rounds || got.Spec.Task.Container.Env[0] != fmt.Sprintf("N=%d", rounds-1) {
		t.Errorf("in the end: version %d, %v", f.Version, got.Spec.Task.Container.Env)
	}
}

func TestWhoUsesASecret(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	v := r.vault()
	pw, other := v.put(aSecret, "pw", 1), v.put(aSecret, "other", 1)
	web := r.mustCreateSpec(withFiles("web", refs(pw), nil))
	// An id in a text is no reference.
	mention := withFiles("mentions", refs(other), nil)
	mention.Labels = map[string]string{"see": idOf("pw")}
	r.mustCreateSpec(mention)
	w1, w2 := r.admit("w1", worker).Meta.Id, r.admit("w2", worker).Meta.Id
	r.putTasks(w1, &skepv1.TaskRecord{Id: "t1", ServiceId: web.Meta.Id, Slot: 1, Revision: 1, Desired: running})
	r.putTasks(w2, &skepv1.TaskRecord{Id: "t2", ServiceId: web.Meta.Id, Slot: 2, Revision: 1, Desired: running})
	held := func(id, object string, n uint64) *skepv1.TaskStatus {
		return &skepv1.TaskStatus{TaskId: id, State: running, Files: []*skepv1.HeldFile{{Id: idOf(object), Version: n}}}
	}
	must[*skepv1.StatusReply](t)(r.report(w1, &skepv1.NodeStatus{Session: "a", Tasks: []*skepv1.TaskStatus{held("t1", "pw", 1)}}))
	// A node that lies: of another's task, of what its task does not use.
	must[*skepv1.StatusReply](t)(r.report(w2, &skepv1.NodeStatus{Session: "a", Tasks: []*skepv1.TaskStatus{held("t1", "pw", 9), held("t2", "other", 1), held("t3", "pw", 9)}}))
	uses := func() map[string]*skepv1.SecretUses {
		return must[*skepv1.SecretUsesReply](t)(call(r, api.FilesUses, &skepv1.SecretUsesRequest{Ids: []string{idOf("pw"), idOf("other"), "", "none"}})).Uses
	}
	got := uses()
	u := got[idOf("pw")].GetUses()
	if len(u) != 1 || u[0].ServiceName != "web" || u[0].Version != 1 || u[0].Pinned || len(u[0].Revisions) != 0 || !slices.Equal(u[0].Versions, []uint64{1}) {
		t.Fatalf("uses: %v", u)
	}
	if h := u[0].Holders; len(h) != 1 || h[0].TaskId != "t1" || h[0].NodeId != w1 || h[0].Version != 1 || h[0].TaskName != "web.1" || h[0].NodeHostname != "w1" {
		t.Errorf("holders: %v", h)
	}
	if u := got[idOf("other")].GetUses(); len(u) != 1 || u[0].ServiceName != "mentions" || len(u[0].Holders) != 0 {
		t.Errorf("uses of the other: %v", u)
	}
	if u := got["none"].GetUses(); len(u) != 0 || got[""] != nil {
		t.Errorf("uses of none: %v", u)
	}
	// Only kept revisions refer to it, in two versions.
	v.put(aSecret, "pw", 2)
	r.roll("pw", 2)
	must[*skepv1.Service](t)(r.updateSpec(withFiles("web", nil, nil)))
	u = uses()[idOf("pw")].GetUses()
	if len(u) != 1 || u[0].Version != 0 || !slices.Equal(u[0].Revisions, []uint64{1, 2}) || !slices.Equal(u[0].Versions, []uint64{1, 2}) || len(u[0].Holders) != 1 {
		t.Errorf("uses by revisions: %v", u)
	}
	must[*skepv1.ServiceReply](t)(call(r, api.ServiceRemove, &skepv1.RemoveServiceRequest{Ref: "web"}))
	if u := uses()[idOf("pw")].GetUses(); len(u) != 0 {
		t.Errorf("after the service: %v", u)
	}
}

// A node gets what its own tasks refer to, while they are to run.
func TestFilesOfTheNodesOwnTasks(t *testing.T) {
	r := newRig(t, kvtest.Server(t))
	r.init()
	v := r.vault()
	sp := withFiles("web", refs(v.put(aSecret, "pw", 1)), refs(v.put(aConfig, "conf", 1)))
	sp.Task.Container.SecretUpdateSignal = "hup"
	web := r.mustCreateSpec(sp)
	w1, w2 := r.admit("w1", worker).Meta.Id, r.admit("w2", worker).Meta.Id
	record := func(id string, desired skepv1.TaskState) *skepv1.TaskRecord {
		return &skepv1.TaskRecord{Id: id, ServiceId: web.Meta.Id, Slot: 1, Revision: 1, Desired: desired}
	}
	gen := r.putTasks(w1, record("runs", running), record("waits", skepv1.TaskState_TASK_STATE_READY), record("ends", skepv1.TaskState_TASK_STATE_SHUTDOWN), record("goes", skepv1.TaskState_TASK_STATE_REMOVE))
	r.putTasks(w2, record("theirs", running))
	ask := func(node string, generation uint64) map[string]*skepv1.TaskFiles {
		t.Helper()
		out := map[string]*skepv1.TaskFiles{}
		for _, f := range must[*skepv1.TaskFilesReply](t)(call(r, api.FilesOfTasks, &skepv1.TaskFilesRequest{NodeId: node, Generation: generation, TaskIds: []string{"runs", "waits", "ends", "goes", "theirs", "none", "runs"}})).Tasks {
			if out[f.TaskId] != nil {
				t.Errorf("%s twice", f.TaskId)
			}
			out[f.TaskId] = f
		}
		return out
	}
	got := ask(w1, gen)
	if len(got) != 2 || got["runs"].GetServiceName() != "web" || got["waits"] == nil || got["runs"].Secrets[0].Version != 1 || got["runs"].Configs[0].Id != idOf("conf") {
		t.Errorf("w1 gets %v", got)
	}
	if got := ask(w2, 1<<60); len(got) != 1 || got["theirs"] == nil { // a generation that was made up
		t.Errorf("w2 gets %v", got)
	}
	for _, node := range []string{"none", "", "unplaced", "unplaced." + web.Meta.Id, "rollout." + web.Meta.Id} {
		if got := ask(node, 0); len(got) != 0 {
			t.Errorf("%q gets %v", node, got)
		}
	}
	// A newer version, which comes with a signal: to tasks of the revision before as well, and its node is told.
	told := make(chan string, 4)
	sub, err := r.nc.Subscribe(subject.PushFiles("*"), func(m *nats.Msg) { told <- m.Subject })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	v.put(aSecret, "pw", 2)
	r.roll("pw", 2)
	want := map[string]bool{subject.PushFiles(w1): true, subject.PushFiles(w2): true}
	for range 2 {
		if s := <-told; !want[s] {
			t.Errorf("told: %s", s)
		}
	}
	if got := ask(w1, gen); got["runs"].Secrets[0].Version != 2 {
		t.Errorf("the newer version does not come to the task that runs: %v", got["runs"])
	}
	// A revision that asks for another task is not what this one gets.
	next := proto.CloneOf(must[*skepv1.Service](t)(r.inspect("web")).Spec)
	next.Task.Container.Secrets = append(next.Task.Container.Secrets, v.put(aSecret, "more", 1))
	must[*skepv1.Service](t)(r.updateSpec(next))
	if got := ask(w1, gen); len(got["runs"].Secrets) != 1 || got["runs"].Secrets[0].Version != 1 {
		t.Errorf("a task of the first revision gets %v", got["runs"].Secrets)
	}
	// Gone from the node: gone from what it may ask for.
	r.putTasks(w1)
	if got := ask(w1, 0); len(got) != 0 {
		t.Errorf("after its tasks left: %v", got)
	}
}

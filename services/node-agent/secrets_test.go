package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
)

const (
	aSecret = skepv1.SecretKind_SECRET_KIND_SECRET
	aConfig = skepv1.SecretKind_SECRET_KIND_CONFIG
)

// vaultOf is the vault of a node's cluster: real keys and seals, played by the test.
type vaultOf struct {
	n   *node
	ca  *pki.CA
	key *seal.Key

	mu     sync.Mutex
	values map[string]*skepv1.DeliveredValue // the newest, by id
	files  map[string][]*skepv1.HeldFile     // of tasks that the node has not; else what their spec says
	asks   []*skepv1.DeliverAsk
	sizes  []int // of requests, bytes
	// pieces, if set, bounds the values of an answer, lists those of the tasks listed.
	pieces, lists int
	// refuse, if set, refuses a task.
	refuse func(task string) (why string, again bool)
	// tamper, if set, changes an answer, which is sealed to the reader of the request and signed by the vault.
	tamper func(ask *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) error
}

// withVault gives a node a certificate and a vault to ask with it. The agent must not have been started yet.
func withVault(t testing.TB, n *node) *vaultOf {
	t.Helper()
	v := &vaultOf{n: n, ca: pkitest.NewCA(t), values: map[string]*skepv1.DeliveredValue{}, files: map[string][]*skepv1.HeldFile{}}
	var err error
	if v.key, err = seal.NewKey(); err != nil {
		t.Fatal(err)
	}
	n.cfg.Certificate = pkitest.Store(t, v.ca, pki.Identity{NodeID: n.id, Role: pki.Worker}, time.Hour)
	srv, err := rpc.NewServer(n.nc, rpc.Config{Name: "skep-vault"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	if err := api.HandleNode(srv, api.VaultDeliver, v.deliver); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vaultOf) put(kind skepv1.SecretKind, name string, version uint64, value string) *skepv1.FileReference {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.values["id-"+name] = &skepv1.DeliveredValue{Id: "id-" + name, Version: version, Kind: kind, Name: name, Value: []byte(value)}
	return &skepv1.FileReference{Id: "id-" + name, Name: name, Target: name, Uid: "0", Gid: "0", Mode: 0o444, Version: version}
}

// set changes how it answers.
func (v *vaultOf) set(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

func (v *vaultOf) filesOf(id string) (out []*skepv1.HeldFile) {
	if f, ok := v.files[id]; ok {
		return f
	}
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	c := v.n.specs[v.n.tasks[id].GetServiceId()].GetSpec().GetTask().GetContainer()
	for _, list := range [][]*skepv1.FileReference{c.GetSecrets(), c.GetConfigs()} {
		for _, f := range list {
			version := f.Version
			if c.GetSecretUpdateSignal() != "" {
				version = v.values[f.Id].GetVersion()
			}
			out = append(out, &skepv1.HeldFile{Id: f.Id, Version: version})
		}
	}
	return out
}

func (v *vaultOf) deliver(_ context.Context, node string, r *skepv1.DeliverRequest) (*skepv1.DeliverReply, error) {
	ask, who, err := seal.Asked([]*x509.Certificate{v.ca.Cert}, r)
	if err != nil || who.NodeID != node {
		return nil, fault.Denied("asked by %s: %v", who.NodeID, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asks, v.sizes = append(v.asks, ask), append(v.sizes, proto.Size(r))
	d := &skepv1.Delivery{Ask: seal.Digest(r)}
	given := map[task.FileKey]bool{}
	for _, t := range ask.Tasks {
		if v.lists > 0 && len(d.Tasks) == v.lists {
			d.More = true
			break
		}
		if v.refuse != nil {
			if why, again := v.refuse(t.TaskId); why != "" {
				d.Tasks = append(d.Tasks, &skepv1.DeliveredTask{TaskId: t.TaskId, Refused: why, Again: again})
				continue
			}
		}
		has := map[task.FileKey]bool{}
		for _, h := range t.Held {
			has[task.FileKey{ID: h.Id, Version: h.Version}] = true
		}
		files := v.filesOf(t.TaskId)
		d.Tasks = append(d.Tasks, &skepv1.DeliveredTask{TaskId: t.TaskId, Files: files})
		for _, f := range files {
			k := task.FileKey{ID: f.Id, Version: f.Version}
			if has[k] || given[k] {
				continue
			}
			if v.pieces > 0 && len(d.Values) == v.pieces {
				d.More = true
				break
			}
			given[k] = true
			d.Values = append(d.Values, proto.CloneOf(v.values[f.Id]))
		}
	}
	out := &skepv1.DeliverReply{}
	if out.Key, err = v.key.Public(v.ca); err != nil {
		return nil, err
	}
	reader := ask.Reader
	if v.tamper != nil {
		if err := v.tamper(ask, d, out); err != nil || len(out.Sealed) > 0 {
			return out, err
		}
	}
	out.Sealed, err = v.key.To(reader, d)
	return out, err
}

// upWithVault is a node with an agent, the test image, and a vault.
func upWithVault(t testing.TB) (*node, *vaultOf) {
	t.Helper()
	n := newNode(t)
	v := withVault(t, n)
	n.start()
	n.load(archive(t, testImage, busybox(t, nil, nil)))
	return n, v
}

// inMemory are the tasks whose files are in memory.
func (n *node) inMemory() string {
	entries, err := os.ReadDir(filepath.Join(n.cfg.RunDir, "files"))
	if err != nil {
		n.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

// see runs a command in a task.
func (n *node) see(id, cmd, want string) {
	n.t.Helper()
	if out, code := n.exec(id, "sh", "-c", cmd); out != want || code != 0 {
		n.t.Errorf("%s: %q (%d), want %q", cmd, out, code, want)
	}
}

func TestSecretsOfATask(t *testing.T) {
	n, v := upWithVault(t)
	odd := "\ufeffone\r\ntwo\x00three\n\n"
	a, b, c := v.put(aSecret, "a", 1, odd), v.put(aSecret, "b", 3, "B"), v.put(aConfig, "c", 1, "C")
	a.Target, a.Uid, a.Gid, a.Mode = "deep/er/a", "app", "app", 0o4400
	b.Target = "deep/er/b" // two in one folder, twice the same value
	again := proto.CloneOf(b)
	again.Target = "/opt/key"
	c.Target = "/etc/web/web.conf"
	root := proto.CloneOf(c)
	root.Target = "c"
	s := n.spec("sleep", "100000")
	s.Task.Container.Secrets, s.Task.Container.Configs = []*skepv1.FileReference{a, b, again}, []*skepv1.FileReference{c, root}
	// Memory over the folder that secrets stand in does not hide them.
	s.Task.Container.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_TMPFS, Target: "/run"}}
	s.Task.Container.ReadOnly = true
	n.load(archive(t, "skep.test/app:1", busybox(t, map[string]string{"etc/passwd": "root:x:0:0::/:\napp:x:1234:77::/:\n", "etc/group": "root:x:0:\napp:x:4321:\n"}, nil)))
	s.Task.Container.Image = "skep.test/app:1"
	ids := n.put(2, s)
	st := n.state(running, ids...)
	if len(st.Files) != 3 {
		t.Errorf("reports %v", st.Files)
	}
	for _, id := range ids {
		n.see(id, "cat /run/secrets/deep/er/a", odd)
		n.see(id, "cat /run/secrets/deep/er/b /opt/key /etc/web/web.conf /c", "BBCC")
		n.see(id, "stat -c '%u %g %a' /run/secrets/deep/er/a /opt/key", "1234 4321 4400\n0 0 444\n")
		n.see(id, "echo x 2>/dev/null >/opt/key || echo no; rm -f /run/secrets/deep/er/b 2>/dev/null || echo busy", "no\nbusy\n")
	}
	if got := n.inMemory(); !strings.Contains(got, ids[0]) || !strings.Contains(got, ids[1]) {
		t.Errorf("in memory: %s", got)
	}
	n.want(shutdown, ids...)
	n.state(shutdown, ids...)
	n.drop(ids...)
	await(t, "their memory to be free", func() bool { return n.inMemory() == "" })
}

// Faults that are said before a process runs, and leave nothing.
func TestSecretsThatCannotBe(t *testing.T) {
	n, v := upWithVault(t)
	for want, change := range map[string]func(f *skepv1.FileReference){
		`secret s: the image's /etc/passwd has no user "ghost"; give the owner as a number`: func(f *skepv1.FileReference) { f.Uid = "ghost" },
		`secret s: the image's /etc/group has no group "ghost"; give it as a number`:        func(f *skepv1.FileReference) { f.Gid = "ghost" },
		`secret not found: s`: func(*skepv1.FileReference) {
			v.set(func() { v.refuse = func(string) (string, bool) { return "secret not found: s", false } })
		},
	} {
		v.set(func() { v.refuse = nil })
		f := v.put(aSecret, "s", 1, "value")
		change(f)
		s := n.spec("sleep", "1000")
		s.Task.Container.Secrets = []*skepv1.FileReference{f}
		ids := n.put(1, s)
		if st := n.state(rejected, ids...); st.Err != want {
			t.Errorf("want %q, got %q", want, st.Err)
		}
		n.drop(ids...)
	}
	await(t, "nothing in memory", func() bool { return n.inMemory() == "" })
}

// An image may have links where a secret is to stand. Nothing is written outside the container.
func TestSecretsWhereTheImageHasLinks(t *testing.T) {
	n, v := upWithVault(t)
	outside := t.TempDir()
	up := strings.Repeat("../", 20)
	n.load(archive(t, "skep.test/links:1", over(t, busybox(t, nil, nil),
		&tar.Header{Name: "run/", Typeflag: tar.TypeDir, Mode: 0o755},
		&tar.Header{Name: "run/secrets", Typeflag: tar.TypeSymlink, Linkname: outside},
		&tar.Header{Name: "rel", Typeflag: tar.TypeSymlink, Linkname: up + outside[1:]},
		&tar.Header{Name: "file", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(outside, "file")})))
	a, b, c := v.put(aSecret, "a", 1, "A"), v.put(aSecret, "b", 1, "B"), v.put(aSecret, "c", 1, "C")
	b.Target, c.Target = "/rel/b", "/file"
	s := n.spec("sleep", "100000")
	s.Task.Container.Image, s.Task.Container.Secrets = "skep.test/links:1", []*skepv1.FileReference{a, b, c}
	ids := n.put(1, s)
	n.await("the task to run or to be refused", func(m map[string]*skepv1.TaskStatus) bool { return m[ids[0]].GetState() >= running })
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("written outside: %v %v", entries, err)
	}
	st := n.told(ids[0])
	if st.State == running {
		n.see(ids[0], "cat /run/secrets/a /rel/b /file", "ABC")
	} else {
		t.Errorf("%v", st)
	}
}

// What an agent was given, the next one finds: it starts what was prepared with nobody to ask, and gives no more than it
// was given to what runs.
func TestSecretsOutliveTheAgent(t *testing.T) {
	n, v := upWithVault(t)
	s := n.spec("sleep", "100000")
	s.Task.Container.Secrets = []*skepv1.FileReference{v.put(aSecret, "a", 1, "A")}
	runs := n.put(1, s)
	waits := n.add(1, s, func(r *skepv1.TaskRecord) { r.Desired = ready })
	gone := n.add(1, s, func(r *skepv1.TaskRecord) { r.Desired = ready })
	n.state(running, runs...)
	n.state(ready, append(waits, gone...)...)
	asked := 0
	v.set(func() {
		asked = len(v.asks)
		v.tamper = func(*skepv1.DeliverAsk, *skepv1.Delivery, *skepv1.DeliverReply) error {
			return fault.Unavailable("away")
		}
	})
	n.halt()
	// One leaves the set between delivery and start, while no agent looks.
	n.mu.Lock()
	delete(n.tasks, gone[0])
	n.gen++
	n.mu.Unlock()
	n.start()
	n.want(running, waits...)
	n.state(running, append(runs, waits...)...)
	n.see(runs[0], "cat /run/secrets/a", "A")
	n.see(waits[0], "cat /run/secrets/a", "A")
	v.set(func() {
		if len(v.asks) != asked {
			t.Errorf("the vault was asked %d times more", len(v.asks)-asked)
		}
	})
	await(t, "the memory of the one that left", func() bool { return !strings.Contains(n.inMemory(), gone[0]) })
}

// A new version comes to a task that runs, with a signal and no restart.
func TestNewerSecretsForATaskThatRuns(t *testing.T) {
	n, v := upWithVault(t)
	s := n.spec("sh", "-c", "trap 'cat /run/secrets/a; echo' HUP; echo armed; while :; do sleep 0.05; done")
	s.Task.Container.Secrets, s.Task.Container.SecretUpdateSignal = []*skepv1.FileReference{v.put(aSecret, "a", 1, "one")}, "SIGHUP"
	ids := n.put(1, s)
	pid := n.state(running, ids...).Pid
	n.awaitLogs(ids[0], 1)
	for i, value := range []string{"two", "three"} {
		v.put(aSecret, "a", uint64(i+2), value)
		if err := n.nc.Publish(subject.PushFiles(n.id), nil); err != nil {
			t.Fatal(err)
		}
		if l := n.awaitLogs(ids[0], i+2); string(l[i+1].Line) != value+"\n" {
			t.Errorf("after the signal it reads %q", l[i+1].Line)
		}
		n.await("the version to be reported", func(m map[string]*skepv1.TaskStatus) bool {
			f := m[ids[0]].GetFiles()
			return len(f) == 1 && f[0].Version == uint64(i+2)
		})
	}
	// The next agent knows which version stands, and asks for no value.
	n.halt()
	n.start()
	n.state(running, ids...)
	if st := n.told(ids[0]); st.Pid != pid || len(st.Files) != 1 || st.Files[0].Version != 3 {
		t.Errorf("after a restart of the agent: %v", st)
	}
}

// The old key beside the new one: one secret in two places and versions, of which one changes and comes back.
func TestOneSecretInTwoVersions(t *testing.T) {
	n, v := upWithVault(t)
	versions := []uint64{1, 2}
	v.set(func() {
		v.tamper = func(ask *skepv1.DeliverAsk, d *skepv1.Delivery, _ *skepv1.DeliverReply) error {
			d.Values = nil
			given := map[uint64]bool{}
			for i, id := range ask.Tasks {
				d.Tasks[i].Files = nil
				for _, n := range versions {
					given[n] = true
					d.Tasks[i].Files = append(d.Tasks[i].Files, &skepv1.HeldFile{Id: "id-key", Version: n})
				}
				for _, h := range id.Held {
					delete(given, h.Version)
				}
			}
			for n := range given {
				d.Values = append(d.Values, &skepv1.DeliveredValue{Id: "id-key", Version: n, Kind: aSecret, Name: "key", Value: fmt.Append(nil, n)})
			}
			return nil
		}
	})
	old, now := v.put(aSecret, "key", 1, "1"), v.put(aSecret, "key", 2, "2")
	old.Target, old.Pinned, now.Target = "old", true, "new"
	s := n.spec("sleep", "100000")
	s.Task.Container.Secrets, s.Task.Container.SecretUpdateSignal = []*skepv1.FileReference{old, now}, "SIGWINCH"
	ids := n.put(1, s)
	n.state(running, ids...)
	n.see(ids[0], "cat /run/secrets/old /run/secrets/new", "12")
	for _, next := range [][]uint64{{1, 3}, {1, 1}, {1, 2}} {
		v.set(func() { versions = next })
		if err := n.nc.Publish(subject.PushFiles(n.id), nil); err != nil {
			t.Fatal(err)
		}
		want := map[uint64]bool{next[0]: true, next[1]: true}
		n.await("the versions to be reported", func(m map[string]*skepv1.TaskStatus) bool {
			f := m[ids[0]].GetFiles()
			return len(f) == len(want) && want[f[0].Version] && want[f[len(f)-1].Version]
		})
		n.see(ids[0], "cat /run/secrets/old /run/secrets/new", fmt.Sprint(next[0])+fmt.Sprint(next[1]))
	}
}

// Answers that are not the vault's, not to this request, or not to this node give a task nothing.
func TestAnswersThatAreNotTheVaults(t *testing.T) {
	n, v := upWithVault(t)
	other, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	otherCA := pkitest.NewCA(t)
	stranger, err := seal.NewReader()
	if err != nil {
		t.Fatal(err)
	}
	var old *skepv1.DeliverReply
	v.values["s"] = &skepv1.DeliveredValue{Id: "s", Version: 1, Kind: aSecret, Name: "s", Value: []byte("value")}
	for _, c := range []struct {
		name, want string
		tamper     func(*skepv1.DeliverAsk, *skepv1.Delivery, *skepv1.DeliverReply) error
	}{
		{"another key, which the CA does not vouch for", "this cluster's CA does not vouch for it", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) (err error) {
			if r.Key, err = other.Public(otherCA); err == nil {
				r.Sealed, err = other.To(a.Reader, d)
			}
			return err
		}},
		{"the vault's signature for another key", "this cluster's CA does not vouch for it", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) error {
			k, err := other.Public(v.ca)
			if err == nil {
				r.Key.Xkey = k.Xkey
				r.Sealed, err = other.To(a.Reader, d)
			}
			return err
		}},
		{"to another reader", "not sealed to this key", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) (err error) {
			r.Sealed, err = v.key.To(stranger.Key(), d)
			return err
		}},
		{"altered", "not sealed to this key", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) (err error) {
			if r.Sealed, err = v.key.To(a.Reader, d); err == nil {
				r.Sealed[len(r.Sealed)-1] ^= 1
			}
			return err
		}},
		{"to another request", "the vault's answer is to another request", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) error {
			d.Ask = bytes.Repeat([]byte{1}, 32)
			return nil
		}},
		{"no digest", "the vault's answer is to another request", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) error {
			d.Ask = nil
			return nil
		}},
		{"remembered", "", func(a *skepv1.DeliverAsk, d *skepv1.Delivery, r *skepv1.DeliverReply) (err error) {
			if r.Sealed, err = v.key.To(a.Reader, d); err == nil {
				old = proto.CloneOf(r)
			}
			return err
		}},
		{"replayed", "not sealed to this key", func(_ *skepv1.DeliverAsk, _ *skepv1.Delivery, r *skepv1.DeliverReply) error {
			r.Key, r.Sealed = old.Key, old.Sealed
			return nil
		}},
		{"empty", "not sealed to this key", func(_ *skepv1.DeliverAsk, _ *skepv1.Delivery, r *skepv1.DeliverReply) error {
			r.Sealed = []byte{0}
			return nil
		}},
		{"nothing of what was asked for", "did not deliver all", func(_ *skepv1.DeliverAsk, d *skepv1.Delivery, _ *skepv1.DeliverReply) error {
			d.Tasks, d.Values = nil, nil
			return nil
		}},
		{"files without values", "did not deliver all", func(_ *skepv1.DeliverAsk, d *skepv1.Delivery, _ *skepv1.DeliverReply) error {
			d.Values = nil
			return nil
		}},
		{"of another task", "did not deliver all", func(_ *skepv1.DeliverAsk, d *skepv1.Delivery, _ *skepv1.DeliverReply) error {
			d.Values, d.Tasks[0].TaskId = nil, "other"
			return nil
		}},
	} {
		v.set(func() {
			v.files["t"] = []*skepv1.HeldFile{{Id: "s", Version: 1}}
			v.tamper = c.tamper
		})
		got, err := n.svc.courier.Files(t.Context(), "t", nil)
		switch {
		case c.want == "" && (err != nil || string(got.Values[task.FileKey{ID: "s", Version: 1}].GetValue()) != "value"):
			t.Errorf("%s: %v %v", c.name, got, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !task.IsTemporary(err)):
			t.Errorf("%s: %v", c.name, err)
		}
	}
	v.set(func() {
		v.tamper = func(*skepv1.DeliverAsk, *skepv1.Delivery, *skepv1.DeliverReply) error { return fault.Denied("no") }
	})
	if _, err := n.svc.courier.Files(t.Context(), "t", nil); err == nil || task.IsTemporary(err) {
		t.Errorf("denied: %v", err)
	}
}

// Many tasks ask at once; answers come in pieces, some tasks are refused, and each gets its own.
func TestDeliveriesInPieces(t *testing.T) {
	n := newNode(t)
	v := withVault(t, n)
	n.start()
	const tasks, each = 150, 40
	v.set(func() {
		v.pieces, v.lists = 100, 10
		for i := range tasks {
			name := fmt.Sprintf("t%d", i)
			for j := range each {
				f := &skepv1.HeldFile{Id: fmt.Sprintf("%s-%s-%d", id.New(), name, j), Version: 1}
				v.files[name] = append(v.files[name], f)
				v.values[f.Id] = &skepv1.DeliveredValue{Id: f.Id, Version: 1, Kind: aSecret, Name: name, Value: []byte(f.Id)}
			}
		}
		v.refuse = func(task string) (string, bool) {
			return map[string]string{"t3": "final", "t4": "soon"}[task], task == "t4"
		}
	})
	errs := make(chan error, tasks)
	for i := range tasks {
		go func() {
			name := fmt.Sprintf("t%d", i)
			d, err := n.svc.courier.Files(t.Context(), name, nil)
			switch name {
			case "t3":
				if err == nil || err.Error() != "final" || task.IsTemporary(err) {
					errs <- fmt.Errorf("t3: %v", err)
					return
				}
			case "t4":
				if err == nil || !task.IsTemporary(err) {
					errs <- fmt.Errorf("t4: %v", err)
					return
				}
			default:
				if err != nil || len(d.Values) != each {
					errs <- fmt.Errorf("%s: %d values, %v", name, valuesOf(d), err)
					return
				}
				for k, x := range d.Values {
					if string(x.Value) != k.ID || !strings.Contains(k.ID, "-"+name+"-") {
						errs <- fmt.Errorf("%s has the value %q at %s", name, x.Value, k.ID)
						return
					}
				}
			}
			errs <- nil
		}()
	}
	for range tasks {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	v.set(func() {
		largest := 0
		for _, s := range v.sizes {
			largest = max(largest, s)
		}
		t.Logf("%d requests, the largest %d bytes", len(v.asks), largest)
		if largest > 512<<10 {
			t.Errorf("a request of %d bytes: the broker takes 1 MiB", largest)
		}
	})
}

func valuesOf(d *task.Delivery) int {
	if d == nil {
		return 0
	}
	return len(d.Values)
}

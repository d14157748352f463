package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// asked is what a person asks of the node.
func asked[Q, R proto.Message](n *node, e api.Endpoint[Q, R], req Q) (R, error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return api.Call(ctx, n.nc, e.At(n.id), req)
}

func (n *node) volumes(f ...*skepv1.Filter) map[string]*skepv1.Volume {
	n.t.Helper()
	r, err := asked(n, api.VolumeList, &skepv1.ListVolumesRequest{Filters: f, Size: true})
	if err != nil {
		n.t.Fatal(err)
	}
	out := map[string]*skepv1.Volume{}
	for _, v := range r.Volumes {
		out[v.Name] = v
	}
	return out
}

func (n *node) prune(all bool) string {
	n.t.Helper()
	r, err := asked(n, api.VolumePrune, &skepv1.PruneVolumesRequest{All: all})
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Join(r.Removed, " ")
}

func volumeMount(source, target string, change ...func(*skepv1.Mount)) *skepv1.Mount {
	m := &skepv1.Mount{Type: skepv1.Mount_TYPE_VOLUME, Source: source, Target: target}
	for _, f := range change {
		f(m)
	}
	return m
}

func withOptions(o map[string]string) func(*skepv1.Mount) {
	return func(m *skepv1.Mount) { m.VolumeOpts = o }
}

var scratch = map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=0755"}

// From its making to its end: a volume is used, shown, protected, kept by a restart, and pruned.
func TestVolumeLife(t *testing.T) {
	n := up(t)
	made, err := asked(n, api.VolumeCreate, &skepv1.CreateVolumeRequest{Name: "web-1", Labels: map[string]string{"team": "x"}})
	if err != nil || made.Volume.Driver != "local" || made.Volume.CreatedAt == nil {
		t.Fatalf("%v %v", made, err)
	}
	if _, err := asked(n, api.VolumeCreate, &skepv1.CreateVolumeRequest{Name: "spare"}); err != nil {
		t.Fatal(err)
	}
	random, err := asked(n, api.VolumeCreate, &skepv1.CreateVolumeRequest{})
	if err != nil || len(random.Volume.Name) != 64 {
		t.Errorf("%v %v", random, err)
	}
	s := n.spec("sleep", "1000")
	s.Task.Container.Mounts = []*skepv1.Mount{volumeMount("{{ .Service.Name }}-{{ .Task.Slot }}", "/data"), volumeMount("", "/anon"), volumeMount("scratch", "/s", withOptions(scratch))}
	ids := n.put(1, s)
	n.state(running, ids...)
	n.exec(ids[0], "sh", "-c", "dd if=/dev/zero of=/data/big bs=1k count=64; touch /s/f")
	at := filepath.Join(n.cfg.DataDir, "agent/volumes/scratch/_data")

	check := func(when string, held bool) {
		t.Helper()
		v := n.volumes()
		for _, name := range []string{"web-1", "scratch", "_task." + ids[0] + ".0"} {
			if got := v[name].GetTaskIds(); len(got) != 1 || got[0] != ids[0] {
				t.Errorf("%s: %s is used by %v", when, name, got)
			}
		}
		if v["web-1"].GetSizeBytes() < 64<<10 || v["web-1"].GetLabels()["team"] != "x" || !v["_task."+ids[0]+".0"].GetAnonymous() || v["scratch"].GetMounted() != held || len(v["spare"].GetTaskIds()) != 0 {
			t.Errorf("%s: %v", when, v)
		}
		for _, force := range []bool{false, true} {
			_, err := asked(n, api.VolumeRemove, &skepv1.RemoveVolumeRequest{Name: "scratch", Force: force})
			if held && (!fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "in use on node host1 by task web.1."+ids[0])) {
				t.Errorf("%s: %v", when, err)
			}
			if !held && !force && (!fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "ended tasks that are still kept")) {
				t.Errorf("%s: %v", when, err)
			}
			if !held {
				break
			}
		}
		if _, err := asked(n, api.VolumeRemove, &skepv1.RemoveVolumeRequest{Name: "_task." + ids[0] + ".0"}); !fault.Is(err, fault.CodeConflict) {
			t.Errorf("%s: a task's own volume is removed: %v", when, err)
		}
		if got := n.prune(false); got != "" {
			t.Errorf("%s: pruned %s", when, got)
		}
	}
	check("running", true)
	n.halt()
	n.start()
	check("after a restart of the agent", true)
	if v := n.volumes(&skepv1.Filter{Key: "dangling", Values: []string{"true"}}, &skepv1.Filter{Key: "name", Values: []string{"pare", "nope"}}); len(v) != 1 || v["spare"] == nil {
		t.Errorf("filtered: %v", v)
	}
	if got := n.prune(true); got != random.Volume.Name+" spare" && got != "spare "+random.Volume.Name {
		t.Errorf("pruned with --all: %s", got)
	}
	n.want(shutdown, ids...)
	n.state(shutdown, ids...)
	n.awaitReleased(ids[0])
	if out, _ := exec.Command("findmnt", "-n", at).Output(); len(out) > 0 {
		t.Errorf("still mounted after the last task: %s", out)
	}
	check("ended and kept", false)
	if got := n.prune(true); got != "" {
		t.Errorf("pruned with --all what a kept task mounts: %s", got)
	}
	if _, err := asked(n, api.VolumeRemove, &skepv1.RemoveVolumeRequest{Name: "scratch", Force: true}); err != nil {
		t.Error(err)
	}
	n.drop(ids...)
	n.await("removal", func(m map[string]*skepv1.TaskStatus) bool { return m[ids[0]] == nil })
	if got := n.prune(true); got != "web-1" {
		t.Errorf("pruned at last: %s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(n.cfg.DataDir, "agent/volumes/[^.]*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// awaitReleased waits until an ended task holds nothing any more.
func (n *node) awaitReleased(id string) {
	n.t.Helper()
	n.await("release of "+id, func(map[string]*skepv1.TaskStatus) bool {
		_, err := os.Stat(filepath.Join(n.cfg.DataDir, "agent/volumes/.tasks", id))
		if err != nil {
			return true
		}
		go n.svc.report.changed()
		return false
	})
}

// What people ask of a node's volumes and cannot have.
func TestVolumeRefusals(t *testing.T) {
	n := up(t)
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprintf("label-%d", i)] = "0123456789"
	}
	for _, c := range []struct {
		r    *skepv1.CreateVolumeRequest
		code fault.Code
		want string
	}{
		{&skepv1.CreateVolumeRequest{Name: "a/b"}, fault.CodeUsage, "invalid volume name"},
		{&skepv1.CreateVolumeRequest{Name: ".tasks"}, fault.CodeUsage, "invalid volume name"},
		{&skepv1.CreateVolumeRequest{Name: "_task.x.0"}, fault.CodeUsage, "invalid volume name"},
		{&skepv1.CreateVolumeRequest{Name: strings.Repeat("x", 256)}, fault.CodeUsage, "invalid volume name"},
		{&skepv1.CreateVolumeRequest{Name: "a", Driver: "rexray"}, fault.CodeConflict, "rexray"},
		{&skepv1.CreateVolumeRequest{Name: "a", Options: map[string]string{"type": "nfs"}}, fault.CodeInvalid, "missing volume option device"},
		{&skepv1.CreateVolumeRequest{Name: "a", Labels: many}, fault.CodeInvalid, "bytes"},
	} {
		if _, err := asked(n, api.VolumeCreate, c.r); !fault.Is(err, c.code) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.r.Name, err)
		}
	}
	if _, err := asked(n, api.VolumeRemove, &skepv1.RemoveVolumeRequest{Name: "../../etc"}); !fault.Is(err, fault.CodeNotFound) {
		t.Error(err)
	}
	if _, err := asked(n, api.VolumeUpdate, &skepv1.UpdateVolumeRequest{Name: "nope", LabelAdd: map[string]string{"a": "b"}}); !fault.Is(err, fault.CodeNotFound) {
		t.Error(err)
	}
	for _, f := range []*skepv1.Filter{{Key: "nope"}, {Key: "dangling", Values: []string{"perhaps"}}} {
		if _, err := asked(n, api.VolumeList, &skepv1.ListVolumesRequest{Filters: []*skepv1.Filter{f}}); !fault.Is(err, fault.CodeUsage) {
			t.Error(err)
		}
	}
	if _, err := asked(n, api.VolumePrune, &skepv1.PruneVolumesRequest{All: true, Filters: []*skepv1.Filter{{Key: "name", Values: []string{"x"}}}}); !fault.Is(err, fault.CodeUsage) {
		t.Error(err)
	}

	secret := map[string]string{"type": "cifs", "device": "//nas/x", "o": "username=me,password=hush"}
	if r, err := asked(n, api.VolumeCreate, &skepv1.CreateVolumeRequest{Name: "nas", Options: secret}); err != nil || strings.Contains(r.String(), "hush") {
		t.Errorf("%v %v", r, err)
	}
	if v := n.volumes()["nas"]; v.Options["o"] != "username=me,password=<hidden>" {
		t.Errorf("%v", v)
	}
	if r, err := asked(n, api.VolumeUpdate, &skepv1.UpdateVolumeRequest{Name: "nas", LabelAdd: map[string]string{"a": "b", "c": "d"}, LabelRm: []string{"a"}}); err != nil || r.Volume.Labels["a"] != "b" || r.Volume.Labels["c"] != "d" {
		t.Errorf("%v %v", r, err)
	}
	// A task's mount: the same name with other options, a helper that is missing, a name that a template makes bad.
	t.Setenv("PATH", "/usr/bin:/bin")
	for want, m := range map[string]*skepv1.Mount{
		`volume nas is on node host1 already, with other options: device is "tmpfs" and is "//nas/x" there`: volumeMount("nas", "/x", withOptions(scratch)),
		"mount volume d on node host1: the program mount.davfs is missing: install the package davfs2":      volumeMount("d", "/x", withOptions(map[string]string{"type": "davfs", "device": "http://x"})),
		`invalid volume name "web/1"`: volumeMount("{{.Service.Name}}/{{.Task.Slot}}", "/x"),
		"invalid volume name \"\"":    volumeMount("{{.Service.Labels.none}}", "/x"),
	} {
		s := n.spec("true")
		s.Labels = map[string]string{"none": ""}
		s.Task.Container.Mounts = []*skepv1.Mount{m}
		if st := n.state(rejected, n.put(1, s)...); !strings.Contains(st.Err, want) {
			t.Errorf("%q, want %q", st.Err, want)
		}
	}
}

// A volume of its own file system is full: the task is told which, and it is not taken for the node's disk.
func TestVolumeFull(t *testing.T) {
	n := up(t)
	n.load(archive(t, "skep.test/big:1", busybox(t, map[string]string{"data/big": strings.Repeat("x", 3<<20)}, nil)))
	s := n.spec("sleep", "1000")
	s.Task.Container.Image = "skep.test/big:1"
	s.Task.Container.Mounts = []*skepv1.Mount{volumeMount("small", "/data", withOptions(scratch))}
	st := n.state(rejected, n.put(1, s)...)
	if want := "fill volume small on node host1 with the image's content: it is full"; !strings.Contains(st.Err, want) {
		t.Errorf("%q, want %q", st.Err, want)
	}
	// What was half prepared is let go of.
	n.awaitReleased(st.TaskId)
	await(t, "the volume to be unmounted", func() bool {
		out, _ := exec.Command("findmnt", "-n", filepath.Join(n.cfg.DataDir, "agent/volumes/small/_data")).Output()
		return len(out) == 0
	})
	// The same without the copy runs.
	s.Task.Container.Mounts[0].VolumeNocopy = true
	n.state(running, n.put(1, s)...)
}

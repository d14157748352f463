package agent

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// rexray is a volume plug-in that holds folders of the test.
type rexray struct {
	t   *testing.T
	dir string

	mu     sync.Mutex
	mounts []string // "web task"
	busy   string   // why it does not unmount, "" = it does
	before func()   // looks around when it is asked to unmount
}

func (x *rexray) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var in struct{ Name, ID string }
	_ = json.NewDecoder(r.Body).Decode(&in) // Activate has none
	at, use := filepath.Join(x.dir, in.Name), in.Name+" "+in.ID
	out := map[string]any{"Implements": []string{"VolumeDriver"}, "Capabilities": map[string]string{"Scope": "global"}, "Mountpoint": at}
	switch filepath.Ext(r.URL.Path) {
	case ".Create":
		if err := os.MkdirAll(at, 0o755); err != nil {
			x.t.Error(err)
		}
	case ".Get":
		if _, err := os.Stat(at); err != nil {
			out["Err"] = "no such volume"
		}
		out["Volume"] = map[string]string{"Name": in.Name}
	case ".Mount":
		if slices.Contains(x.mounts, use) {
			x.t.Errorf("mounted twice: %s", use)
		}
		x.mounts = append(x.mounts, use)
	case ".Unmount":
		if x.before != nil {
			x.before()
		}
		if out["Err"] = x.busy; x.busy == "" {
			x.mounts = slices.DeleteFunc(x.mounts, func(m string) bool { return m == use })
		}
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (x *rexray) set(busy string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.busy = busy
}

// upWithPlugin is a node whose host has a volume plug-in, by the name of rexray.
func upWithPlugin(t *testing.T) (*node, *rexray) {
	t.Helper()
	dir, err := os.MkdirTemp("", "plug") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "rexray.sock"))
	if err != nil {
		t.Fatal(err)
	}
	x := &rexray{t: t, dir: filepath.Join(dir, "volumes")}
	srv := &http.Server{Handler: x}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	// Cleanups run backwards: the node lets go of its volumes before that.
	t.Cleanup(func() { _ = srv.Close(); <-ended; _ = os.RemoveAll(dir) })
	n := newNode(t)
	n.cfg.PluginDirs = dir
	n.start()
	n.load(archive(t, testImage, busybox(t, nil, nil)))
	return n, x
}

// A node tells the managers of its plug-in, and of each volume from before it is mounted until that has been undone: in every
// status, an agent's first one included. It is undone when the container is gone, and not before.
func TestVolumeOfAPlugin(t *testing.T) {
	n, x := upWithPlugin(t)
	await(t, "the node is described with its plug-in", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.ContainsFunc(n.desc.GetPlugins(), func(p *skepv1.Plugin) bool {
			return proto.Equal(p, &skepv1.Plugin{Type: "Volume", Name: "rexray", Scope: "global"})
		})
	})
	s := n.spec("sh", "-c", "echo mine > /data/$(hostname); sleep 1000")
	s.Task.Container.Mounts = []*skepv1.Mount{{Source: "web", Target: "/data", VolumeDriver: "rexray", VolumeNocopy: true}}
	first := n.put(1, s)[0]
	pid := int(n.state(running, first).Pid)
	await(t, "the container writes into the volume", func() bool {
		files, err := os.ReadDir(filepath.Join(x.dir, "web"))
		return err == nil && len(files) == 1
	})
	x.before = func() {
		if !dead(pid) {
			t.Error("asked to unmount while the container runs")
		}
	}
	n.mu.Lock()
	n.always = "rexray/web:" + first + "!"
	n.mu.Unlock()
	n.halt()
	n.start()
	n.state(running, first)
	second := n.put(1, n.spec("sleep", "1000"))[0] // some more statuses
	n.state(running, second)

	// The task leaves while no agent is there.
	n.halt()
	n.mu.Lock()
	n.always = ""
	delete(n.tasks, first)
	n.gen++
	n.mu.Unlock()
	x.set("device is busy")
	n.start()
	n.await("the volume stays with this node, and why", func(m map[string]*skepv1.TaskStatus) bool {
		return m[first] == nil && len(n.held) == 1 && strings.HasPrefix(n.held[0], "rexray/web:!") && strings.Contains(n.held[0], "device is busy")
	})
	x.set("")
	n.await("it is let go of", func(map[string]*skepv1.TaskStatus) bool { return len(n.held) == 0 })
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.mounts) != 0 {
		t.Errorf("mounted: %v", x.mounts)
	}
}

// A task whose plug-in is not there is rejected, with its name and the node's.
func TestAbsentPlugin(t *testing.T) {
	n, _ := upWithPlugin(t)
	s := n.spec("sleep", "1000")
	s.Task.Container.Mounts = []*skepv1.Mount{{Source: "web", Target: "/data", VolumeDriver: "netapp"}}
	ids := n.put(1, s)
	n.await("the task is rejected", func(m map[string]*skepv1.TaskStatus) bool {
		st := m[ids[0]]
		return st != nil && st.State == rejected && strings.Contains(st.Err, `node host1 has no volume plug-in "netapp"`)
	})
}

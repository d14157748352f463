package agent

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// hub is a registry on loopback that can be made to fail and asks for a password in one repository.
type hub struct {
	addr     string
	down     atomic.Bool
	requests atomic.Int64
	// authorized counts the requests that carried credentials.
	authorized atomic.Int64
	blobs      sync.Map // path → how often it was fetched
}

func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{}
	reg := registry.New()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		if r.Header.Get("Authorization") != "" {
			h.authorized.Add(1)
		}
		if h.down.Load() {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		if strings.Contains(r.URL.Path, "/private/") {
			if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="hub"`)
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			c, _ := h.blobs.LoadOrStore(r.URL.Path, new(atomic.Int64))
			c.(*atomic.Int64).Add(1)
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	h.addr = strings.TrimPrefix(srv.URL, "http://")
	return h
}

func (h *hub) push(t testing.TB, repo string, what any) string {
	t.Helper()
	ref, err := name.ParseReference(h.addr+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	var d v1.Hash
	switch v := what.(type) {
	case v1.Image:
		err = remote.Write(ref, v, remote.WithAuth(basic{}))
		d, _ = v.Digest()
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, v, remote.WithAuth(basic{}))
		d, _ = v.Digest()
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestImages(t *testing.T) {
	n := newNode(t)
	h := newHub(t)
	n.cfg.Registries = &Registries{Registries: map[string]Registry{
		"docker.io": {Mirrors: []string{"http://" + h.addr}, MirrorsOnly: true},
		"reg.test":  {Mirrors: []string{"http://127.0.0.1:1"}, MirrorsOnly: true},
		h.addr:      {PlainHTTP: true},
	}}
	digest := h.push(t, "library/busybox:1", busybox(t, nil, nil))
	h.push(t, "private/app:1", busybox(t, map[string]string{"etc/p": "p"}, nil))
	arm := busybox(t, map[string]string{"etc/arch": "arm"}, func(c *v1.ConfigFile) { c.Architecture = "s390x" })
	h.push(t, "library/arm:1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}}))
	n.start()
	with := func(image string) *skepv1.ServiceSpec {
		s := n.spec("sleep", "1000")
		s.Task.Container.Image = image
		return s
	}
	resolve := func(ref string) (*skepv1.ResolveImageReply, error) {
		r := &skepv1.ResolveImageReply{}
		return r, rpc.Call(t.Context(), n.nc, subject.API("image", "resolve"), &skepv1.ResolveImageRequest{Ref: ref}, r)
	}

	t.Run("resolve", func(t *testing.T) {
		r, err := resolve("busybox:1")
		if err != nil || r.Ref != "docker.io/library/busybox:1@"+digest || len(r.Platforms) != 1 || r.Platforms[0].Arch != "amd64" {
			t.Errorf("%v %v", r, err)
		}
		if r, err := resolve("arm:1"); err != nil || len(r.Platforms) != 1 || r.Platforms[0].Arch != "s390x" {
			t.Errorf("%v %v", r, err)
		}
		if _, err := resolve("nope:1"); err == nil || !strings.Contains(err.Error(), "no such image: nope:1") {
			t.Errorf("%v", err)
		}
	})

	t.Run("tasks of one image pull it once, by digest through the mirror", func(t *testing.T) {
		ids := n.put(6, with("docker.io/library/busybox:1@"+digest))
		n.state(running, ids...)
		h.blobs.Range(func(path, c any) bool {
			if k := c.(*atomic.Int64).Load(); k > 1 && strings.Contains(path.(string), "busybox") {
				t.Logf("%s fetched %d times", path, k) // the resolver read the configuration too
			}
			return true
		})
		before := h.requests.Load()
		n.state(running, n.put(2, with("docker.io/library/busybox:1@"+digest))...)
		if after := h.requests.Load(); after != before {
			t.Errorf("%d requests for an image that is here", after-before)
		}
		r := &skepv1.ListImagesReply{}
		if err := rpc.Call(t.Context(), n.nc, subject.Node(n.id, "image.ls"), &skepv1.ListImagesRequest{}, r); err != nil {
			t.Fatal(err)
		}
		if len(r.Images) != 1 || r.Images[0].Name != "busybox:1" || r.Images[0].Digest != digest || !r.Images[0].InUse || r.Images[0].Size == 0 {
			t.Errorf("image ls: %v", r.Images)
		}
		err := rpc.Call(t.Context(), n.nc, subject.Node(n.id, "image.rm"), &skepv1.RemoveImageRequest{Ref: "busybox:1"}, nil)
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("rm of an image in use: %v", err)
		}
	})

	t.Run("permanent failures reject", func(t *testing.T) {
		for image, want := range map[string]string{
			"nope:1":                  "no such image: nope:1",
			"arm:1":                   "no image for linux/amd64 in arm:1: it has linux/s390x",
			h.addr + "/private/app:1": "pull access denied",
			"Not:A:Ref":               `invalid image reference "Not:A:Ref"`,
		} {
			if st := n.state(rejected, n.put(1, with(image))...); !strings.Contains(st.Err, want) {
				t.Errorf("%s: %v", image, st)
			}
		}
	})

	t.Run("a registry that is down is tried again", func(t *testing.T) {
		d := h.push(t, "library/later:1", busybox(t, map[string]string{"etc/l": "l"}, nil))
		h.down.Store(true)
		ids := n.put(1, with("docker.io/library/later:1@"+d))
		n.await("the reason in the message", func(m map[string]*skepv1.TaskStatus) bool {
			st := m[ids[0]]
			return st.GetState() == skepv1.TaskState_TASK_STATE_PREPARING && strings.Contains(st.GetMessage(), "trying again")
		})
		h.down.Store(false)
		n.state(running, ids...)
	})

	t.Run("stopped while it pulls", func(t *testing.T) {
		ids := n.put(1, with("reg.test/never:1"))
		n.await("the wait", func(m map[string]*skepv1.TaskStatus) bool {
			return strings.Contains(m[ids[0]].GetMessage(), "trying again")
		})
		n.want(shutdown, ids...)
		n.state(shutdown, ids...)
	})

	t.Run("pull, use without a registry, remove", func(t *testing.T) {
		h.push(t, "library/tool:1", busybox(t, map[string]string{"etc/t": "t"}, nil))
		p := &skepv1.PullImageReply{}
		if err := rpc.Call(t.Context(), n.nc, subject.Node(n.id, "image.pull"), &skepv1.PullImageRequest{Ref: "tool:1"}, p); err != nil || p.Name != "tool:1" {
			t.Fatalf("%v %v", p, err)
		}
		h.down.Store(true)
		defer h.down.Store(false)
		if r, err := resolve("tool:1"); err != nil || r.Ref != "docker.io/library/tool:1@"+p.Digest {
			t.Errorf("resolve of a local image: %v %v", r, err)
		}
		ids := n.put(1, with("tool:1"))
		n.state(running, ids...)
		pinned := n.put(1, with("docker.io/library/tool:1@"+p.Digest))
		n.state(running, pinned...)
		n.want(shutdown, pinned...)
		n.state(shutdown, pinned...)
		// The tag moves on; what tasks were made from stays.
		n.load(archive(t, "index.docker.io/library/tool:1", busybox(t, map[string]string{"etc/t": "newer"}, nil)))
		again := n.put(1, with("docker.io/library/tool:1@"+p.Digest))
		n.state(running, again...)
		n.want(shutdown, again...)
		n.state(shutdown, again...)
		n.want(shutdown, ids...)
		n.state(shutdown, ids...)
		r := &skepv1.RemoveImageReply{}
		if err := rpc.Call(t.Context(), n.nc, subject.Node(n.id, "image.rm"), &skepv1.RemoveImageRequest{Ref: "tool:1"}, r); err != nil || len(r.Removed) == 0 {
			t.Errorf("%v %v", r, err)
		}
		if err := rpc.Call(context.Background(), n.nc, subject.Node(n.id, "image.rm"), &skepv1.RemoveImageRequest{Ref: "tool:1"}, r); err == nil || !strings.Contains(err.Error(), "no such image: tool:1") {
			t.Errorf("second removal: %v", err)
		}
	})
}

// basic is the test's login.
type basic struct{}

func (basic) Authorization() (*authn.AuthConfig, error) {
	return &authn.AuthConfig{Username: "me", Password: "secret"}, nil
}

func TestDiskFull(t *testing.T) {
	n := newNode(t)
	h := newHub(t)
	n.cfg.Registries = &Registries{Registries: map[string]Registry{h.addr: {PlainHTTP: true}}}
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.cfg.DataDir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 12<<20)

	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	digest := h.push(t, "big:1", busybox(t, map[string]string{"etc/noise": string(noise)}, nil))
	n.start()
	filler := filepath.Join(n.cfg.DataDir, "filler")
	if err := os.WriteFile(filler, make([]byte, 52<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := n.spec("sleep", "1000")
	s.Task.Container.Image = h.addr + "/big:1@" + digest
	ids := n.put(1, s)
	n.await("the reason on show", func(m map[string]*skepv1.TaskStatus) bool {
		return strings.Contains(m[ids[0]].GetErr(), "no space left on this node's disk")
	})
	n.await("that the node gives it up", func(m map[string]*skepv1.TaskStatus) bool {
		return m[ids[0]].GetState() == skepv1.TaskState_TASK_STATE_REJECTED
	})
	again := n.put(2, s)
	n.await("the reason on show again", func(m map[string]*skepv1.TaskStatus) bool {
		return strings.Contains(m[again[0]].GetErr(), "no space left on this node's disk")
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	n.state(running, again...)
}

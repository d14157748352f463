package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"skep.dev/libs/id"
	"skep.dev/libs/leaktest"
	"skep.dev/services/node-agent/internal/volume"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// fake is a plug-in that keeps its volumes as set of tasks, and does to a call what it is told.
type fake struct {
	t    *testing.T
	sock string
	dir  string // below which its volumes are

	mu      sync.Mutex
	calls   []string // "Mount web task"
	mounts  map[string][]string
	made    map[string]bool
	counts  bool                                                // it counts mounts, and does not know who asked
	forgets bool                                                // it does not know of its mounts any more
	answers map[string]func(w http.ResponseWriter, r io.Reader) // by call
	srv     *http.Server
	ended   chan struct{}
	hung    chan struct{}
}

func newFake(t *testing.T, dirs Dirs, name string) *fake {
	t.Helper()
	f := &fake{t: t, sock: filepath.Join(dirs.Sockets[0], name+".sock"), dir: t.TempDir(), mounts: map[string][]string{}, made: map[string]bool{}, answers: map[string]func(http.ResponseWriter, io.Reader){}, hung: make(chan struct{})}
	f.start()
	t.Cleanup(func() { close(f.hung); f.stop() })
	return f
}

func (f *fake) start() {
	f.t.Helper()
	_ = os.Remove(f.sock)
	l, err := net.Listen("unix", f.sock)
	if err != nil {
		f.t.Fatal(err)
	}
	f.srv, f.ended = &http.Server{Handler: http.HandlerFunc(f.serve)}, make(chan struct{})
	go func(srv *http.Server, ended chan struct{}) { defer close(ended); _ = srv.Serve(l) }(f.srv, f.ended)
}

func (f *fake) stop() {
	_ = f.srv.Close()
	<-f.ended
}

// on sets what a call does from now on; nil: what it should.
func (f *fake) on(call string, do func(w http.ResponseWriter, r io.Reader)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[call] = do
}

func says(status int, body string) func(http.ResponseWriter, io.Reader) {
	return func(w http.ResponseWriter, _ io.Reader) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func (f *fake) hangs(http.ResponseWriter, io.Reader) { <-f.hung }

func crashes(http.ResponseWriter, io.Reader) { panic(http.ErrAbortHandler) }

// and does what should be done, then something else: its answer is lost.
func (f *fake) and(call string, then func(http.ResponseWriter, io.Reader)) func(http.ResponseWriter, io.Reader) {
	return func(w http.ResponseWriter, r io.Reader) {
		var req request
		if err := json.NewDecoder(r).Decode(&req); err != nil {
			f.t.Error(err)
		}
		f.mu.Lock()
		f.do(call, req)
		f.mu.Unlock()
		then(w, r)
	}
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	call := strings.TrimPrefix(r.URL.Path, "/VolumeDriver.")
	if r.Method != http.MethodPost || r.Header.Get("Accept") != accept {
		f.t.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the asker is gone
	}
	var req request
	_ = json.Unmarshal(body, &req) // Activate has none
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSpace(call+" "+req.Name+" "+req.ID))
	do := f.answers[call]
	f.mu.Unlock()
	if do != nil {
		do(w, strings.NewReader(string(body)))
		return
	}
	f.mu.Lock()
	out, failed := f.do(call, req)
	f.mu.Unlock()
	if failed != "" {
		w.WriteHeader(http.StatusInternalServerError)
		out = map[string]any{"Err": failed}
	}
	_ = json.NewEncoder(w).Encode(out)
}

// do is what a plug-in should do.
func (f *fake) do(call string, r request) (out map[string]any, failed string) {
	at := filepath.Join(f.dir, r.Name)
	switch call {
	case "/Plugin.Activate":
		return map[string]any{"Implements": []string{"VolumeDriver"}}, ""
	case "Capabilities":
		return map[string]any{"Capabilities": map[string]string{"Scope": "global"}}, ""
	case "Create":
		if f.made[r.Name] {
			return nil, "already exists"
		}
		f.made[r.Name] = true
	case "Remove":
		delete(f.made, r.Name)
	case "Get":
		if !f.made[r.Name] {
			return nil, "no such volume"
		}
		return map[string]any{"Volume": map[string]any{"Name": r.Name, "CreatedAt": "2024-05-06T07:08:09Z", "Status": map[string]any{"size": 5, "zone": "a"}}}, ""
	case "List":
		all := []map[string]any{}
		for name := range f.made {
			all = append(all, map[string]any{"Name": name})
		}
		return map[string]any{"Volumes": all}, ""
	case "Path":
		if len(f.mounts[r.Name]) == 0 {
			at = ""
		}
		return map[string]any{"Mountpoint": at}, ""
	case "Mount":
		if err := os.MkdirAll(at, 0o755); err != nil {
			f.t.Error(err)
		}
		if f.counts || !slices.Contains(f.mounts[r.Name], r.ID) {
			f.mounts[r.Name] = append(f.mounts[r.Name], r.ID)
		}
		return map[string]any{"mountPoint": at}, ""
	case "Unmount":
		i := slices.Index(f.mounts[r.Name], r.ID)
		if f.counts && i < 0 {
			i = len(f.mounts[r.Name]) - 1
		}
		if i < 0 {
			return nil, "not mounted"
		}
		f.mounts[r.Name] = slices.Delete(f.mounts[r.Name], i, i+1)
	default:
		return nil, "what is " + call
	}
	return map[string]any{"Err": ""}, ""
}

func (f *fake) mountedFor(name string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.mounts[name])
}

func (f *fake) heard(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == prefix || strings.HasPrefix(c, prefix+" ") {
			n++
		}
	}
	return n
}

// node is a node's plug-ins, with short limits.
type node struct {
	*Plugins
	t     *testing.T
	cfg   Config
	tasks map[string]bool
}

func newNode(t *testing.T) (*node, Dirs) {
	t.Helper()
	dir, err := os.MkdirTemp("", "plug") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	dirs := Dirs{Sockets: []string{dir}, Specs: []string{t.TempDir()}}
	n := &node{t: t, cfg: Config{
		Dirs: dirs, State: filepath.Join(t.TempDir(), "held"), Node: "w1", Keep: []string{t.TempDir()}, Log: zaptest.NewLogger(t), Boot: "one",
		limits: limits{slow: 500 * time.Millisecond, quick: 500 * time.Millisecond, look: 500 * time.Millisecond}, patience: 300 * time.Millisecond, wait: 10 * time.Second,
	}}
	n.open()
	t.Cleanup(func() { n.Close() })
	return n, dirs
}

func (n *node) open() {
	n.t.Helper()
	p, err := Open(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Plugins = p
}

// restart is the end of an agent and its next start.
func (n *node) restart() { n.Close(); n.open() }

func (n *node) driver(name string) volume.Driver {
	n.t.Helper()
	d, err := n.Driver(name)
	if err != nil {
		n.t.Fatal(err)
	}
	return d
}

func (n *node) mount(plugin, name, task string) string {
	n.t.Helper()
	path, err := n.driver(plugin).Mount(context.Background(), name, task)
	if err != nil {
		n.t.Fatalf("mount %s for %s: %v", name, task, err)
	}
	return path
}

func (n *node) unmount(plugin, name, task string) {
	n.t.Helper()
	if err := n.driver(plugin).Unmount(context.Background(), name, task); err != nil {
		n.t.Fatal(err)
	}
}

// held is Held as words: "rexray/web: a b! why".
func (n *node) held() string {
	var out []string
	for _, h := range n.Held() {
		s := h.Driver + "/" + h.Name + ":" + strings.Join(h.TaskIds, ",")
		if h.Err != "" {
			s += "! " + h.Err
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func (n *node) awaitHeld(want string) {
	n.t.Helper()
	await(n.t, "held "+want, func() string {
		if got := n.held(); got != want {
			return "held: " + got
		}
		return ""
	})
}

func await(t *testing.T, what string, check func() string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		why := check()
		if why == "" {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%s: %s", what, why)
		}
	}
}

func newTask() string { return id.New() }

func want(t *testing.T, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

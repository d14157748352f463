package mesh

import (
	"context"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"

	"skep.dev/libs/attach"
	"skep.dev/services/ingress-mesh/internal/nsfs"
	"skep.dev/services/ingress-mesh/internal/nsfs/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m, nil, "iptables", "nft", "ip") }

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// hostState is everything a mesh could leave behind.
func hostState(t testing.TB, dir string) string {
	t.Helper()
	// Of links whose namespace is just being taken apart it complains, and they are not there.
	links := strings.Split(run(t, "sh", "-c", "ip -o link 2>/dev/null"), "\n")
	for i, l := range links { // without index and counters
		if f := strings.Fields(l); len(f) > 1 {
			links[i] = f[1]
		}
	}
	sort.Strings(links)
	return strings.Join(links, " ") + "\n" + run(t, "ip", "route") + run(t, "nft", "list", "tables") + run(t, "iptables", "-S") + run(t, "iptables", "-t", "nat", "-S") +
		// Mounts of others, inherited, may go away at any time.
		run(t, "sh", "-c", "grep -F "+dir+" /proc/self/mounts || true")
}

type rig struct {
	t    testing.TB
	cfg  Config
	s    *Service
	stop func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigOn(t, "127.0.0.1")
}

// newRigOn is a rig whose data path is at that address of the host.
func newRigOn(t testing.TB, underlay string) *rig {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip6tables", "-P", "FORWARD", "ACCEPT")
	run(t, "iptables", "-P", "FORWARD", "ACCEPT") // also makes the tables exist before the state is compared
	run(t, "iptables", "-t", "nat", "-S")
	dir := t.TempDir()
	cfg := Config{Log: zaptest.NewLogger(t), NodeID: "n1", DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), Subnet: "100.64.4.0/23", Number: 2, Underlay: underlay}
	if _, ok := t.(*testing.B); ok {
		cfg.Log = nil
	}
	r := &rig{t: t, cfg: cfg}
	before := hostState(t, dir)
	t.Cleanup(func() {
		if r.stop != nil {
			r.stop()
		}
		s, err := New(r.cfg)
		if err == nil {
			err = s.Cleanup()
		}
		if err != nil {
			t.Errorf("cleanup: %v", err)
		}
		if after := hostState(t, dir); after != before && !t.Failed() {
			t.Errorf("left behind; before:\n%s\nafter:\n%s", before, after)
		}
	})
	r.start()
	return r
}

// start runs a service; a second call is a restart.
func (r *rig) start() {
	r.t.Helper()
	if r.stop != nil {
		r.stop()
	}
	s, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		r.t.Fatalf("run: %v", err)
	case <-time.After(30 * time.Second):
		cancel()
		r.t.Fatal("not ready in 30 s")
	}
	r.s = s
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		if err := s.Close(); err != nil {
			r.t.Error(err)
		}
		r.stop = nil
	}
}

func (r *rig) attach(task string) attach.Attachment {
	r.t.Helper()
	a, err := r.s.Attach(context.Background(), attach.Request{TaskID: task})
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// in runs f with its thread in the namespace at path.
func in(path string, f func() error) error {
	return nsfs.Thread(func(netns.NsHandle) error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// ask connects to addr from a task's namespace and returns what the server there says.
func ask(path, addr string) (said string, err error) {
	err = in(path, func() error {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		said = string(b)
		return err
	})
	return said, err
}

// tellClient serves the client's own address to whoever connects.
func tellClient(t testing.TB, l net.Listener) {
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			_ = c.Close()
		}
	}()
}

// outside is a host beyond this one: reached through up0, it knows no route to the tasks.
func outside(t testing.TB) (addr string) {
	t.Helper()
	run(t, "ip", "netns", "add", "outside")
	t.Cleanup(func() {
		run(t, "ip", "netns", "del", "outside")
		run(t, "sh", "-c", "ip link del up0 2>/dev/null || true")
	})
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
	run(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "up0")
	run(t, "ip", "link", "set", "up0", "up")
	run(t, "ip", "-n", "outside", "addr", "add", "198.51.100.2/24", "dev", "eth0")
	run(t, "ip", "-n", "outside", "link", "set", "eth0", "up")
	var l net.Listener
	err := in("/run/netns/outside", func() (err error) {
		l, err = net.Listen("tcp4", "198.51.100.2:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tellClient(t, l)
	return l.Addr().String()
}

package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// What a daemon takes is measured in a process of its own: the test binary runs itself again as `skep node run`.
const asDaemon = "SKEP_NODE_TEST_DAEMON"

// metricsAddr is where it shows what its broker counts.
const metricsAddr = "127.0.0.1:9324"

func runDaemon(args []string) int {
	root := &cobra.Command{Use: "skep", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().String("run-dir", "", "")
	root.AddCommand(runCommand())
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// child is a daemon in a process of its own.
type child struct {
	t   *testing.T
	p   Paths
	pid int
}

// spawn runs the daemon of p in a process of its own until the test ends.
func spawn(t *testing.T, p Paths) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "run", "--data-dir", p.Data, "--run-dir", p.Run, "--metrics-addr", metricsAddr, "--log-level", "error")
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about this thread
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Nothing of it stays for other tests: containerd and the network would outlive a daemon that is stopped.
		within, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := ask(within, p, http.MethodPost, "/leave?force=true"); err != nil {
			t.Errorf("leave: %v", err)
			_ = cmd.Process.Kill()
			return
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the daemon: %v", err)
			}
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			t.Error("the daemon does not end")
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		info, err := ask(ctx, p, "GET", "/ready")
		if err == nil && info.State != "starting" {
			if info.State != "ready" {
				t.Fatalf("the daemon: %+v", info)
			}
			return &child{t, p, cmd.Process.Pid}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the daemon is not ready: %+v %v", info, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// figures are what a daemon takes at a moment.
type figures struct {
	anon, heap, idle int64 // bytes: of its own pages in memory; of live heap after a collection; of heap the system has back
	goroutines, fds  int
	disk             int64 // bytes of the broker's store
	streams          int
	consumers        int
	messages         int
	connections      int
	subscriptions    int
}

func (f figures) String() string {
	return fmt.Sprintf("RssAnon %.1f MB, heap %.1f MB (%.1f given back), %d goroutines, %d files, disk %.1f MB, %d messages, %d streams, %d consumers, %d connections, %d subscriptions",
		mb(f.anon), mb(f.heap), mb(f.idle), f.goroutines, f.fds, mb(f.disk), f.messages, f.streams, f.consumers, f.connections, f.subscriptions)
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// anon is the pages of its own that the daemon has in memory, as they are: nothing is collected for it.
func (c *child) anon() int64 {
	c.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if w := strings.Fields(sc.Text()); len(w) == 3 && w[0] == "RssAnon:" {
			n, err := strconv.ParseInt(w[1], 10, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			return n << 10
		}
	}
	c.t.Fatal("no RssAnon")
	return 0
}

// measure reads RssAnon first: the rest has the daemon collect.
func (c *child) measure() (f figures) {
	c.t.Helper()
	f.anon = c.anon()
	heap := c.profile("heap?gc=1&debug=1")
	stat := func(name string) int64 {
		for line := range strings.Lines(heap) {
			if v, ok := strings.CutPrefix(line, "# "+name+" = "); ok {
				n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				if err != nil {
					c.t.Fatal(err)
				}
				return n
			}
		}
		c.t.Fatalf("the heap profile does not say %s", name)
		return 0
	}
	f.heap, f.idle = stat("HeapAlloc"), stat("HeapReleased")
	if _, err := fmt.Sscanf(c.profile("goroutine?debug=1"), "goroutine profile: total %d", &f.goroutines); err != nil {
		c.t.Fatal(err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	f.fds = len(fds)
	f.disk = usage(c.p.Bus())
	page := scrape(c.t, metricsAddr)
	for name, to := range map[string]*int{"streams": &f.streams, "consumers": &f.consumers, "messages": &f.messages} {
		*to = metric(c.t, page, "skep_bus_jetstream_"+name)
	}
	f.connections, f.subscriptions = metric(c.t, page, "skep_bus_connections"), metric(c.t, page, "skep_bus_subscriptions")
	return f
}

func metric(t *testing.T, page, name string) int {
	t.Helper()
	for line := range strings.Lines(page) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// profile is a page of the control socket's.
func (c *child) profile(name string) string {
	c.t.Helper()
	r, err := controlClient(c.p).Get("http://node/debug/pprof/" + name)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		c.t.Fatalf("profile %s: %s %v", name, r.Status, err)
	}
	return string(b)
}

// keep writes the heap's profile to the directory SKEP_PROFILES names, for `go tool pprof`.
func (c *child) keep(name string) {
	dir := os.Getenv("SKEP_PROFILES")
	if dir == "" {
		return
	}
	for _, kind := range []string{"heap", "goroutine"} {
		if err := os.WriteFile(filepath.Join(dir, name+"."+kind), []byte(c.profile(kind+"?gc=1")), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
}

// usage is the blocks that a directory's files take.
func usage(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went meanwhile
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

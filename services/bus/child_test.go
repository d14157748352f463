package bus

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/leaktest"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// A kill -9 needs a process: the test binary runs itself again as a manager and takes orders on its standard input.

const childEnv = "SKEP_BUS_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := childMain(path); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leaktest.Main(m)
}

// order is a line on the child's standard input; it answers each with a line: the error, or nothing.
type order struct {
	Op       string
	Name     string   `json:",omitempty"`
	Names    []string `json:",omitempty"`
	Replicas int      `json:",omitempty"`
}

func childMain(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var cfg Config
	if err := json.Unmarshal(text, &cfg); err != nil {
		return err
	}
	if cfg.TLS, err = pki.Open(filepath.Join(filepath.Dir(path), "certs")); err != nil {
		return err
	}
	zc := zap.NewDevelopmentConfig()
	zc.Level.SetLevel(zap.WarnLevel)
	zc.DisableStacktrace = true
	if cfg.Log, err = zc.Build(); err != nil {
		return err
	}
	b, err := New(cfg)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	orders := make(chan order)
	go func() {
		defer close(orders)
		in := json.NewDecoder(os.Stdin)
		for {
			var o order
			if in.Decode(&o) != nil {
				return // the parent is gone, or wants us to stop
			}
			orders <- o
		}
	}()
	for {
		select {
		case err := <-ended:
			return err
		case o, ok := <-orders:
			if !ok {
				return b.Close()
			}
			text := ""
			if err := obey(b, o); err != nil {
				text = fmt.Sprintf("%s %s: %v", o.Op, o.Name, err)
			}
			fmt.Printf("%q\n", text)
		}
	}
}

func obey(b *Bus, o order) error {
	limit := patience
	if o.Op == "reform" {
		limit *= 3 // groups that were cut off in the middle take up to 20 s to notice, and an election
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	switch o.Op {
	case "ready":
		select {
		case <-b.Ready():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	case "serving":
		select {
		case <-b.Serving():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	case "reform":
		return reformAlone(ctx, b, o.Name)
	case "members":
		return b.WaitMembers(ctx, o.Names...)
	case "start-witness":
		return b.StartWitness(ctx, o.Name)
	case "stop-witness":
		return b.StopWitness(true)
	case "evacuate":
		return b.Evacuate(ctx, o.Name)
	case "remove":
		return b.Remove(ctx, o.Name)
	case "scale":
		return b.Scale(ctx, o.Replicas)
	}
	return fmt.Errorf("unknown order")
}

// child is a manager in a process of its own.
type child struct {
	t   *testing.T
	cfg Config
	dir string
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newChild(t *testing.T, ca *pki.CA, name string) *child {
	t.Helper()
	cfg := lone(t, ca, name)
	dir := t.TempDir()
	cfg.DataDir, cfg.Witness = filepath.Join(dir, "bus"), ""
	cert, key := pkitest.Certify(t, ca, pki.Identity{NodeID: name, Role: pki.Manager}, time.Hour)
	if _, err := pki.Create(filepath.Join(dir, "certs"), cert, key, ca.CertPEM()); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cfg: cfg, dir: dir}
	t.Cleanup(c.kill)
	return c
}

func (c *child) start() {
	c.t.Helper()
	c.spawn()
	c.do(order{Op: "ready"})
}

// spawn starts its process and waits for nothing.
func (c *child) spawn() {
	c.t.Helper()
	cfg := c.cfg
	cfg.TLS, cfg.Log, cfg.Revoked, cfg.RevokedUser = nil, nil, nil, nil
	text, err := json.Marshal(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(c.dir, "bus.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), childEnv+"="+path)
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// send gives an order and does not wait for it.
func (c *child) send(o order) {
	c.t.Helper()
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		c.t.Fatalf("%s: %s: %v", c.cfg.NodeID, o.Op, err)
	}
}

func (c *child) do(o order) {
	c.t.Helper()
	c.send(o)
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		c.t.Fatalf("%s: %s: %v", c.cfg.NodeID, o.Op, err)
	}
	var text string
	if err := json.Unmarshal(line, &text); err != nil {
		c.t.Fatalf("%s: %s: %s", c.cfg.NodeID, o.Op, line)
	}
	if text != "" {
		c.t.Fatalf("%s: %s", c.cfg.NodeID, text)
	}
}

// kill is a kill -9.
func (c *child) kill() {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGKILL) // it may have ended already
	_ = c.cmd.Wait()                          // reports the signal
	c.cmd = nil
}

// stop ends it gracefully.
func (c *child) stop() {
	c.t.Helper()
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		c.t.Fatalf("%s: stop: %v", c.cfg.NodeID, err)
	}
	c.cmd = nil
}

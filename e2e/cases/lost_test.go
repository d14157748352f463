package cases

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// conversation is an open connection to an echo.
type conversation struct {
	net.Conn
	r *bufio.Reader
}

// talk opens a connection from a host and hears its first echo.
func (c *cluster) talk(from, address string) *conversation {
	c.t.Helper()
	h, err := c.Host(from)
	if err != nil {
		c.t.Fatal(err)
	}
	var x *conversation
	c.await("an echo from "+address, time.Minute, func() string {
		conn, err := c.From(h).Dial("tcp", address)
		if err != nil {
			return err.Error()
		}
		x = &conversation{conn, bufio.NewReader(conn)}
		if err := x.say(10 * time.Second); err != nil {
			_ = conn.Close()
			return err.Error()
		}
		return ""
	})
	c.t.Cleanup(func() { _ = x.Close() })
	return x
}

// say sends a line and waits for its echo.
func (x *conversation) say(limit time.Duration) error {
	if err := x.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(x, "hello"); err != nil {
		return err
	}
	_, err := x.r.ReadString('\n')
	return err
}

// silence is how long TCP would go on by itself: far below its quarter of an hour, far above what is promised.
const silence = time.Minute

// A node loses power, another one is cut off and comes back: whoever has a connection to a task there, by a published port
// or a virtual address, hears soon that it is over, and what was silent meanwhile does not wake at the task that was replaced.
func TestConnectionsToALostNodeEnd(t *testing.T) {
	c := up(t, lab.Options{})
	c.skep("network", "create", "back")
	c.skep("service", "create", "--name", "echo", "--network", "back", "--publish", "7007:7", "--constraint", "node.role==worker", "busybox", "nc", "-ll", "-p", "7", "-e", "cat")
	c.skep("service", "create", "--name", "util", "--network", "back", "--constraint", "node.role==manager", "busybox", "sleep", "100000")
	at := fabric["m1"] + ":7007"
	host := func() string {
		c.t.Helper()
		c.awaitRunning("echo", 1, time.Minute)
		return slices.Collect(maps.Keys(c.running("echo")))[0]
	}
	// ended says when a task's connection to the virtual address is over. nc ends with its connection.
	ended := func() <-chan string {
		out := make(chan string, 1)
		go func() {
			r, err := c.Run(c.ctx, "m1", "skep", "exec", "util.1", "timeout", "300", "sh", "-c", "(while sleep 1; do echo x; done) | nc echo 7 | { read a; echo first $a >&2; cat >/dev/null; }")
			out <- fmt.Sprint(r, err)
		}()
		return out
	}

	first := host()
	port := c.talk("client", at)
	vip := ended()
	c.await("the task to have its connection", time.Minute, func() string {
		if r := c.on("m1", "skep", "exec", "util.1", "netstat", "-tn"); !strings.Contains(r.Stdout, ":7 ") || !strings.Contains(r.Stdout, "ESTABLISHED") {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	if err := c.Kill(c.ctx, first); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for err := error(nil); err == nil || os.IsTimeout(err); err = port.say(time.Second) {
		if time.Since(began) > silence {
			t.Fatalf("the published port: silence for %s after power off", silence)
		}
	}
	t.Logf("the published port's connection ended %.1f s after power off", time.Since(began).Seconds())
	select {
	case said := <-vip:
		t.Logf("the virtual address's connection ended %.1f s after power off: %s", time.Since(began).Seconds(), said)
	case <-time.After(silence):
		t.Errorf("the virtual address: silence for %s after power off", silence)
	}

	if err := c.Start(c.ctx, first); err != nil {
		t.Fatal(err)
	}
	c.awaitNode(first, "Ready", 2*time.Minute)
	second := host()
	port, silent := c.talk("client", at), c.talk("client", at)
	if err := c.Cut(c.ctx, second); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	for err := error(nil); err == nil || os.IsTimeout(err); err = port.say(time.Second) {
		if time.Since(began) > silence {
			t.Fatalf("the published port: silence for %s after the cut", silence)
		}
	}
	t.Logf("the published port's connection ended %.1f s after the cut", time.Since(began).Seconds())
	c.awaitRunning("echo", 1, time.Minute, second)
	if err := c.Heal(c.ctx, second); err != nil {
		t.Fatal(err)
	}
	if err := silent.say(silence); err == nil || os.IsTimeout(err) {
		t.Errorf("what was silent during the cut: %v, want a reset", err)
	}
	c.talk("client", at)
}

package lab

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// What goes over a poor cable comes late, in order and whole, large segments too; some of it is lost; and a repaired cable is as before.
func TestPoorCable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	l := &Lab{Name: "poor-cable", Hosts: []*Host{{Name: "m1", IP: "10.90.1.1", PID: 1}, {Name: "m2", IP: "10.90.1.2", PID: 1}}}
	ctx := t.Context()
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	if err := l.makeFabric(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts {
		h.PID = 0
		if err := l.plug(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	on := func(host, script string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, "ip", "netns", "exec", netnsName(l.Name, host), "sh", "-c", script).CombinedOutput()
		if err != nil {
			t.Logf("%s: %v", script, err)
		}
		return string(out)
	}
	// ping is how many of the answers came, and what the quickest took.
	ping := func(n string) (got int, took time.Duration) {
		t.Helper()
		out := on("m1", "ping -c"+n+" -i 0.02 -W 3 10.90.1.2")
		m := regexp.MustCompile(`(\d+) received`).FindStringSubmatch(out)
		min := regexp.MustCompile(`= ([\d.]+)/`).FindStringSubmatch(out)
		if m == nil || min == nil {
			t.Fatal(out)
		}
		got, _ = strconv.Atoi(m[1])
		ms, _ := strconv.ParseFloat(min[1], 64)
		return got, time.Duration(ms * float64(time.Millisecond))
	}
	// carry sends four megabytes over a connection and wants the same at the other end.
	carry := func() {
		t.Helper()
		var door net.Listener
		if err := within(netnsName(l.Name, "m2"), func() (err error) { door, err = net.Listen("tcp", "10.90.1.2:700"); return err }); err != nil {
			t.Fatal(err)
		}
		defer door.Close()
		sent := make([]byte, 4<<20)
		_, _ = rand.Read(sent) // it never fails
		go func() {
			c, err := l.From(l.Hosts[0]).Dial("tcp", "10.90.1.2:700")
			if err != nil {
				t.Error(err)
				_ = door.Close()
				return
			}
			_, err = c.Write(sent)
			if err := errors.Join(err, c.Close()); err != nil {
				t.Error(err)
			}
		}()
		c, err := door.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes of %d came whole: %v", len(got), len(sent), err)
		}
	}
	if got, took := ping("5"); got != 5 || took > 50*time.Millisecond {
		t.Errorf("a good cable: %d of 5 answers after %s", got, took)
	}
	if err := l.Impair(ctx, "m1", Quality{Delay: 60 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if got, took := ping("5"); got != 5 || took < 120*time.Millisecond {
		t.Errorf("a slow cable: %d of 5 answers after %s", got, took)
	}
	carry()
	if err := l.Repair(ctx, "m1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Impair(ctx, "m2", Quality{Loss: 0.5}); err != nil {
		t.Fatal(err)
	}
	if got, _ := ping("60"); got < 2 || got > 40 {
		t.Errorf("a cable that loses half, there and back: %d of 60 answers", got)
	}
	if err := l.Repair(ctx, "m2"); err != nil {
		t.Fatal(err)
	}
	if got, took := ping("5"); got != 5 || took > 50*time.Millisecond {
		t.Errorf("a repaired cable: %d of 5 answers after %s", got, took)
	}
}

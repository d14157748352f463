package cases

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// doctorSays waits until doctor, asked at a host, has a line with all of these words.
func (c *cluster) doctorSays(host string, limit time.Duration, words ...string) time.Duration {
	c.t.Helper()
	return c.await(fmt.Sprint("doctor says ", words), limit, func() string {
		r := c.on(host, "timeout", "20", "skep", "doctor", "--format", "{{.Status}} {{.Check}}: {{.Text}}")
		for line := range strings.Lines(r.Stdout) {
			has := true
			for _, w := range words {
				has = has && strings.Contains(line, w)
			}
			if has {
				return ""
			}
		}
		return r.Stdout + r.Stderr
	})
}

// says waits until a host's daemon has logged the words since a length of its log.
func (c *cluster) says(host string, since int, limit time.Duration, words string) time.Duration {
	c.t.Helper()
	return c.await(host+" logs "+words, limit, func() string {
		text := c.logged(host)
		if len(text) < since { // it began a new file
			since = 0
		}
		if !strings.Contains(text[since:], words) {
			return text[max(since, len(text)-2000):]
		}
		return ""
	})
}

// The disk under the leading manager hangs: writes to it neither fail nor end. It is said within seconds, another one leads, writes go
// on at the others, and when the disk goes on so does the manager, with everything.
func TestLeadersDiskHangs(t *testing.T) {
	c := up(t, lab.Options{Managers: 3, Hosts: 4, OwnDisk: 3 << 30})
	c.skep("service", "create", "--name", "web", "--replicas", "4", "--constraint", "node.role==worker", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	before := ids(c.tasks("web"))
	c.awaitSettled(3, 2*time.Minute)
	stuck := c.awaitLeader("m1", 3, time.Minute)
	others := []string{"m1", "m2", "m3"}
	others = append(others[:strings.Index("123", stuck[1:])], others[strings.Index("123", stuck[1:])+1:]...)
	w := c.writes("hang", others...)
	c.await("writes", time.Minute, func() string {
		if w.since(others[0], w.began) == 0 {
			return "none"
		}
		return ""
	})
	since := len(c.logged(stuck))
	if err := c.HangDisk(c.ctx, stuck, 3*time.Minute); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	t.Logf("%s, which leads, has a disk that hangs; its log says so after %.1f s", stuck, c.says(stuck, since, time.Minute, "its disk hangs").Seconds())
	c.doctorSays(others[0], time.Minute, "ERROR store of "+stuck)
	t.Logf("doctor says so %.1f s after the beginning", time.Since(began).Seconds())
	c.await("another one leads", time.Minute, func() string {
		all, why := c.managers(others[0])
		for host, status := range all {
			if status == "Leader" && host != stuck {
				return ""
			}
		}
		return fmt.Sprint(all, why)
	})
	t.Logf("another one leads %.1f s after the beginning", time.Since(began).Seconds())
	at := time.Now()
	c.await("writes at the other managers", time.Minute, func() string {
		for _, m := range others {
			if w.since(m, at) < 3 {
				return fmt.Sprint(w.since(m, at), " at ", m)
			}
		}
		return ""
	})
	t.Logf("writes go on at both others %.1f s after the beginning", time.Since(began).Seconds())
	if err := c.ResumeDisk(stuck); err != nil {
		t.Fatal(err)
	}
	c.awaitLeader(others[0], 3, 2*time.Minute)
	n, pause := w.end(append(others, stuck)...)
	t.Logf("%d writes, the longest pause %.1f s", n, pause.Seconds())
	if pause > 40*time.Second {
		t.Errorf("no write was acknowledged for %s", pause)
	}
	if after := ids(c.tasks("web")); after != before {
		t.Errorf("tasks were replaced:\n%s\n%s", before, after)
	}
	c.doctorSays(others[0], 2*time.Minute, "OK store of "+stuck)
	c.awaitNoError(others[0], 2*time.Minute)
	for _, host := range c.members() {
		c.awaitNode(host, "Ready", time.Minute)
	}
}

// A manager starts on a full disk: it says so, the others go on, and once there is room it is a manager again, by itself.
func TestManagerStartsOnAFullDisk(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Managers: 3, Hosts: 3, OwnDisk: 512 << 20})
	c.awaitSettled(3, 2*time.Minute)
	c.kill9("m3", "skep", true)
	if err := c.FillDisk(c.ctx, "m3"); err != nil {
		t.Fatal(err)
	}
	since := len(c.logged("m3"))
	w := c.writes("full", "m1", "m2")
	if err := c.StartDaemon(c.ctx, "m3"); err != nil {
		t.Fatal(err)
	}
	t.Logf("its log says so after %.1f s", c.says("m3", since, time.Minute, "no space left").Seconds())
	at := time.Now()
	c.await("writes at the other managers", time.Minute, func() string {
		for _, m := range []string{"m1", "m2"} {
			if w.since(m, at) < 3 {
				return fmt.Sprint(w.since(m, at), " at ", m)
			}
		}
		return ""
	})
	if err := c.FreeDisk(c.ctx, "m3"); err != nil {
		t.Fatal(err)
	}
	c.await("m3 is a manager again", 2*time.Minute, func() string {
		r := c.on("m3", "sh", "-c", `kill -0 "$(cat /var/lib/skep/lock/node)"`)
		if r.Code != 0 { // what an init system does
			t.Log("the daemon of m3 has ended by itself")
			if err := c.StartDaemon(c.ctx, "m3"); err != nil {
				t.Fatal(err)
			}
		}
		all, why := c.managers("m1")
		if all["m3"] == "" || all["m3"] == "Unreachable" {
			time.Sleep(500 * time.Millisecond) // between two starts, as an init system waits
			return fmt.Sprint(all, why)
		}
		return ""
	})
	n, pause := w.end("m1", "m2", "m3")
	t.Logf("%d writes, the longest pause %.1f s", n, pause.Seconds())
	c.awaitLeader("m3", 3, time.Minute)
	c.awaitNode("m3", "Ready", time.Minute)
	c.awaitNoError("m1", 2*time.Minute)
}

// overwrite alters bytes in the middle of a manager's copy of the specs, while its daemon is down.
func (c *cluster) overwrite(host string) {
	c.t.Helper()
	c.must(host, `set -e; f=$(ls /var/lib/skep/bus/main/jetstream/*/streams/KV_spec/msgs/*.blk | head -1); cp "$f" /srv/whole; n=$(stat -c %s "$f")
		printf overwritten | dd of="$f" bs=1 seek=$((n/2)) conv=notrunc 2>/dev/null`)
}

// Bytes of a manager's store are overwritten while it is down. With two others it comes back with their copy, says what was wrong,
// and keeps the damaged one aside; the only manager does not start, says what to do, and changes nothing.
func TestManagersStoreIsDamaged(t *testing.T) {
	t.Parallel()
	t.Run("one of three", func(t *testing.T) {
		c := up(t, lab.Options{Managers: 3, Hosts: 3})
		c.awaitSettled(3, 2*time.Minute)
		w := c.writes("sums", "m1", "m2", "m3")
		c.await("writes", time.Minute, func() string {
			if w.since("m3", w.began) < 3 {
				return "few"
			}
			return ""
		})
		c.kill9("m3", "skep", true)
		c.overwrite("m3")
		since := len(c.logged("m3"))
		if err := c.StartDaemon(c.ctx, "m3"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		c.says("m3", since, time.Minute, "it was moved aside, and is filled anew from the other managers")
		c.awaitLeader("m1", 3, 2*time.Minute)
		c.doctorSays("m1", 2*time.Minute, "WARN store of m3: it was found damaged on", "KV_spec/msgs/", "lies in /var/lib/skep/bus/damaged there")
		t.Logf("said, and a manager again, after %.1f s", time.Since(began).Seconds())
		w.end("m1", "m2", "m3")
		c.must("m3", "test -f /var/lib/skep/bus/damaged/WHY && rm -r /var/lib/skep/bus/damaged")
		c.doctorSays("m1", time.Minute, "OK store of m3")
	})
	t.Run("the only one", func(t *testing.T) {
		c := up(t, lab.Options{Hosts: 2})
		c.skep("service", "create", "--name", "web", "--replicas", "2", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
		c.kill9("m1", "skep", true)
		c.overwrite("m1")
		before := c.must("m1", "cd /var/lib/skep/bus && find main group.json -type f | sort | xargs sha256sum")
		r := c.on("m1", "timeout", "60", "skep", "node", "run")
		if r.Code == 0 || r.Code == 124 {
			t.Errorf("a daemon with a damaged store ends with %d", r.Code)
		}
		for _, want := range []string{"is damaged", "nothing was changed", "skep backup restore", "keep a copy of /var/lib/skep/bus"} {
			if !strings.Contains(r.Stdout+r.Stderr+c.logged("m1"), want) {
				t.Errorf("nothing says %q:\n%s%s", want, r.Stdout, r.Stderr)
			}
		}
		if after := c.must("m1", "cd /var/lib/skep/bus && find main group.json -type f | sort | xargs sha256sum"); after != before {
			t.Errorf("files were changed:\n%s\n%s", before, after)
		}
		if n := c.containers("w1"); n != 1 {
			t.Errorf("%d containers on the worker, want 1", n)
		}
		c.must("m1", `cat /srv/whole > "$(ls /var/lib/skep/bus/main/jetstream/*/streams/KV_spec/msgs/*.blk | head -1)"`)
		if err := c.StartDaemon(c.ctx, "m1"); err != nil {
			t.Fatal(err)
		}
		c.awaitAPI(time.Minute)
		c.awaitRunning("web", 2, time.Minute)
	})
}

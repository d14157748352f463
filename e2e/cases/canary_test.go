package cases

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/e2e/lab"
	"skep.dev/libs/pki"
)

// canary is a mark that stands in every value of a test, and is searched for wherever a value must not be.
type canary struct {
	mark  string
	forms [][]byte // as it is, in base64 at each offset, in hexadecimal
}

func newCanary() canary {
	b := make([]byte, 15)
	_, _ = rand.Read(b) // never fails
	c := canary{mark: "canary" + hex.EncodeToString(b)}
	c.forms = [][]byte{[]byte(c.mark), []byte(hex.EncodeToString([]byte(c.mark)))}
	for offset := range 3 {
		enc := base64.StdEncoding.EncodeToString(append(make([]byte, offset), c.mark...))
		c.forms = append(c.forms, []byte(enc[4:len(enc)-4]))
	}
	return c
}

// in reports in which form the mark is there, "" = it is not.
func (c canary) in(b []byte) string {
	for i, f := range c.forms {
		if bytes.Contains(b, f) {
			return []string{"in clear", "in hexadecimal", "in base64", "in base64", "in base64"}[i]
		}
	}
	return ""
}

// reader searches a stream.
func (c canary) reader(r io.Reader) (string, error) {
	const overlap = 256
	buf := make([]byte, 4<<20)
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		if n > 0 {
			if how := c.in(buf[:kept+n]); how != "" {
				return how, nil
			}
			k := min(overlap, kept+n)
			copy(buf, buf[kept+n-k:kept+n])
			kept = k
		}
		if err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				err = nil
			}
			return "", err
		}
	}
}

// files lists the files below dir that have the mark.
func (c canary) files(t *testing.T, dir string) (found []string, seen int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // gone meanwhile
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		seen++
		if how, _ := c.reader(f); how != "" {
			found = append(found, strings.TrimPrefix(path, dir)+" "+how)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return found, seen
}

// process says where a process has the mark: its arguments, its environment, its memory.
func (c canary) process(pid int) (where []string) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	for _, name := range []string{"cmdline", "environ"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil && c.in(b) != "" {
			where = append(where, name)
		}
	}
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	mem, merr := os.Open(filepath.Join(dir, "mem"))
	if err != nil || merr != nil {
		return where // ended
	}
	defer mem.Close()
	for _, line := range strings.Split(string(maps), "\n") {
		// Only what was written can hold it: not a program's text, nor what is reserved.
		var from, to int64
		if n, _ := fmt.Sscanf(line, "%x-%x", &from, &to); n != 2 || !strings.HasPrefix(strings.Fields(line)[1], "rw") {
			continue
		}
		if how, _ := c.reader(io.NewSectionReader(mem, from, to-from)); how != "" {
			return append(where, "memory ("+how+")")
		}
	}
	return where
}

// A value that went in by every way there is stands in the memory of the containers that use it, of the vault and of the
// agents, and nowhere else.
func TestCanary(t *testing.T) {
	c := up(t, lab.Options{Hosts: 3, Separate: true, Env: []string{"DOCKER_CONFIG=/dev/shm/docker"}})
	mark := newCanary()
	m1, err := c.Host("m1")
	if err != nil {
		t.Fatal(err)
	}

	// Everything that is said is heard: on the wire, and by a manager who listens to all of the broker.
	var mu sync.Mutex
	var wire, broker []string
	var last []byte
	capture, err := c.Capture(func(p []byte) {
		// A value may be cut by the end of a packet.
		joined := append(last, p...)
		if how := mark.in(joined); how != "" {
			mu.Lock()
			wire = append(wire, how)
			mu.Unlock()
		}
		last = bytes.Clone(joined[max(0, len(joined)-256):])
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := pki.Open(filepath.Join(m1.Root(), "var/lib/skep/certs"))
	if err != nil {
		t.Fatal(err)
	}
	manager, err := nats.Connect(m1.IP+":2377", nats.SetCustomDialer(c.From(m1)), nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst(), nats.CustomInboxPrefix("_INBOX_canary"))
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	messages := 0
	if _, err := manager.Subscribe(">", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		messages++
		if how := mark.in(fmt.Appendf(nil, "%s %s %v %s", m.Subject, m.Reply, m.Header, m.Data)); how != "" {
			broker = append(broker, m.Subject+" "+how)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := manager.Flush(); err != nil {
		t.Fatal(err)
	}

	put := func(value string, args ...string) {
		t.Helper()
		ctx := c.ctx
		r, err := c.RunInput(ctx, "m1", value, append([]string{"skep"}, args...)...)
		if err != nil || r.Code != 0 {
			t.Fatalf("%v: %v %s", args, err, r.Stderr)
		}
	}
	put(mark.mark+" by pipe", "secret", "create", "piped", "-")
	put(mark.mark+" first", "secret", "create", "updated", "-")
	put(mark.mark+" a config", "config", "create", "conf", "-")
	put("{{ secret `piped` }} {{ .Service.Name }} "+mark.mark, "config", "create", "--template-driver", "golang", "filled", "-")
	// A file that the caller keeps is the caller's; it goes before the disk is searched.
	if r, err := c.RunInput(c.ctx, "m1", mark.mark+" by file", "sh", "-c", "cat > /dev/shm/value && skep secret create filed /dev/shm/value && rm /dev/shm/value"); err != nil || r.Code != 0 {
		t.Fatalf("%v %s", err, r.Stderr)
	}
	// What a login keeps is the caller's as well: it goes with the logout.
	if err := c.StartPrivate(c.ctx, "ci", mark.mark); err != nil {
		t.Fatal(err)
	}
	put(mark.mark, "login", "--username", "ci", "--password-stdin", "--ca", lab.PrivateCA, lab.PrivateAddress)
	c.skep("service", "create", "--name", "private", "--mode", "global", "--with-registry-auth", "--stop-signal", "SIGKILL", lab.PrivateAddress+"/library/whoami:v1")
	c.awaitRunning("private", 3, time.Minute)
	c.skep("logout", lab.PrivateAddress)
	c.skep("service", "create", "--name", "user", "--replicas", "6", "--stop-signal", "SIGKILL", "--update-parallelism", "0", "--secret", "piped", "--secret", "filed", "--secret", "updated",
		"--config", "source=conf,target=/conf", "--config", "source=filled,target=/filled", "busybox", "sleep", "100000")
	c.awaitRunning("user", 6, time.Minute)
	put(mark.mark+" second", "secret", "update", "updated", "-")
	task := func() string {
		for _, ts := range c.running("user") {
			for _, x := range ts {
				return x.ID
			}
		}
		return ""
	}
	c.await("version 2 in a container", time.Minute, func() string {
		id := task()
		if id == "" {
			return "no task runs"
		}
		// The sum, not the value: what exec prints goes through the broker.
		r := c.on("m1", "skep", "exec", id, "sh", "-c", "cat /run/secrets/updated | md5sum")
		want := c.on("m1", "sh", "-c", "printf '%s second' "+mark.mark+" | md5sum").Stdout
		if r.Stdout != want {
			return r.Stdout + r.Stderr
		}
		return ""
	})
	c.awaitRunning("user", 6, time.Minute)

	// What people can print.
	for _, args := range [][]string{
		{"service", "inspect", "user"}, {"service", "ps", "--no-trunc", "user"}, {"task", "inspect", task()}, {"secret", "inspect", "piped", "filed", "updated"}, {"secret", "history", "updated"},
		{"service", "inspect", "private"}, {"service", "ps", "--no-trunc", "private"}, {"audit", "--json"}, {"doctor"}, {"secret", "ls"}, {"config", "ls"}, {"events", "--since", "1h", "--until", "0s"}, {"service", "history", "user"}, {"service", "diff", "user"},
	} {
		if out := c.skep(args...); mark.in([]byte(out)) != "" {
			t.Errorf("skep %s prints it:\n%s", strings.Join(args, " "), out)
		}
	}

	// Every process of every host, and every file of every disk.
	holders, inMemory := map[string]int{}, 0
	for _, name := range c.members() {
		h, err := c.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		pids, err := c.PIDs(h)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil {
				continue
			}
			program := strings.TrimSpace(string(comm))
			where := mark.process(pid)
			holders[program] += len(where)
			if len(where) > 0 && program != "skep-vault" && program != "skep-agent" {
				t.Errorf("%s on %s has it: %v", program, name, where)
			}
			if slices.Contains(where, "cmdline") || slices.Contains(where, "environ") {
				t.Errorf("%s on %s was given it: %v", program, name, where)
			}
		}
		found, seen := mark.files(t, c.Files(h))
		if len(found) > 0 || seen < 50 {
			t.Errorf("of %d files on the disk of %s these have it: %v", seen, name, found)
		}
		for _, dir := range []string{"run", "tmp", "dev/shm", "var/log"} {
			found, _ := mark.files(t, filepath.Join(h.Root(), dir))
			for _, f := range found {
				if dir == "run" && strings.HasPrefix(f, "/skep/files/") {
					inMemory++
				} else {
					t.Errorf("%s: /%s%s", name, dir, f)
				}
			}
		}
	}
	// The search finds what is there. A name of a program has 15 letters for the kernel.
	if inMemory < 6*5 {
		t.Errorf("%d files of the tasks have it, want 30", inMemory)
	}
	for _, program := range []string{"skep-bus", "skep-state", "skep-scheduler", "skep-health", "skep-mesh", "skep-mesh-contr", "skep-vault", "skep-agent", "containerd"} {
		if _, ok := holders[program]; !ok {
			t.Errorf("no process %s was looked into: %v", program, holders)
		}
	}
	heard, lost, err := capture.Stop()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d packets (%d lost), %d messages, in memory of %v", heard, lost, messages, holders)
	if err != nil || len(wire) > 0 || heard < 1000 {
		t.Errorf("the wire: %v, %v", wire, err)
	}
	if len(broker) > 0 || messages < 100 {
		t.Errorf("the broker: %v", broker)
	}
}

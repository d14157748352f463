package cases

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

var unlockKeyForm = regexp.MustCompile(`SKEPKEY-1-[A-Za-z0-9+/]{48}`)

// A manager that was started again while autolock is on runs its cluster and keeps its secrets to itself until it is
// unlocked; with the key of the day, and with no other.
func TestAutolock(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2, Race: true, InitFlags: []string{"--autolock"}})
	unlock := func(key string) lab.Result {
		t.Helper()
		r, err := c.RunInput(c.ctx, "m1", key+"\n", "skep", "unlock")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	restart := func() {
		t.Helper()
		c.kill9("m1", "skep", true)
		if err := c.StartDaemon(c.ctx, "m1"); err != nil {
			t.Fatal(err)
		}
		c.awaitAPI(time.Minute)
	}
	// What init printed nobody wrote down here; an unlocked manager tells it again.
	key := c.skep("unlock-key", "-q")
	if !unlockKeyForm.MatchString(key) || len(key) != 58 {
		t.Fatalf("the key: %q", key)
	}
	files := func() string { return strings.TrimSpace(c.on("m1", "ls", "/var/lib/skep/vault").Stdout) }
	if got := files(); got != "master.sealed" {
		t.Errorf("after init --autolock: %s", got)
	}
	c.on("m1", "sh", "-c", "printf one | skep secret create s1 -")
	c.skep("service", "create", "--name", "web", "--replicas", "2", "--publish", "8080:80", "whoami:v1")
	c.skep("service", "create", "--name", "db", "--secret", "s1", "--constraint", "node.hostname==w1", "busybox", "sleep", "100000")
	token := c.skep("join-token", "-q", "worker")
	before := ids(c.tasks("web")) + ids(c.tasks("db"))

	restart()
	if after := ids(c.tasks("web")) + ids(c.tasks("db")); after != before {
		t.Errorf("tasks changed over a restart:\n%s\n%s", before, after)
	}
	if r := c.on("w1", "curl", "-sS", "--max-time", "5", "http://127.0.0.1:8080"); r.Code != 0 {
		t.Errorf("the service does not answer: %s", r.Stderr)
	}
	locked := "the cluster's secrets are locked: run skep unlock on m1"
	c.on("m1", "sh", "-c", "printf two > /tmp/two")
	for _, args := range [][]string{{"secret", "create", "s2", "/tmp/two"}, {"secret", "ls"}, {"unlock-key"}, {"join-token", "worker"}, {"context", "issue", "-o", "-", "ann"},
		{"service", "create", "--detach", "--name", "no", "--secret", "s1", "busybox"}, {"swarm", "update", "--autolock=false"}} {
		c.refused(1, []string{locked}, args...)
	}
	c.refused(1, []string{"This node is already part of a swarm"}, "init", "--autolock")
	m1, err := c.Host("m1")
	if err != nil {
		t.Fatal(err)
	}
	c.refusedOn("client", 1, []string{locked}, "skep", "join", "--token", token, m1.IP+":2377")
	c.skep("service", "create", "--name", "plain", "busybox", "sleep", "100000")
	// A task that needs a secret waits, and says for what; the one that runs goes on.
	c.skep("service", "scale", "--detach", "db=2")
	c.await("the new task says what it waits for", time.Minute, func() string {
		for _, x := range c.tasks("db") {
			if strings.Contains(x.Error, locked) {
				return ""
			}
		}
		return c.skep("service", "ps", "--no-trunc", "db")
	})
	if got := count(c.running("db")); got != 1 {
		t.Errorf("%d tasks of db run", got)
	}
	if got := c.nodeStates()["m1"]; got != "Ready Active Leader (locked)" {
		t.Errorf("node ls: %s", got)
	}
	if out := c.skep("info"); !strings.Contains(out, "State: locked") || !strings.Contains(out, "Locked: m1") {
		t.Errorf("info:\n%s", out)
	}
	if r := c.on("m1", "skep", "doctor"); r.Code != 1 || !strings.Contains(r.Stdout, "m1 waits for the unlock key") {
		t.Errorf("doctor: %d\n%s", r.Code, r.Stdout)
	}

	// Mistyped, and wrong: the fifth wrong one makes the next wait.
	if r := unlock(key[:30] + "AAAA" + key[34:]); r.Code != 1 || !strings.Contains(r.Stderr, "it was copied with a mistake") {
		t.Errorf("a mistyped key: %d %s", r.Code, r.Stderr)
	}
	if r := unlock(key); r.Code != 0 || !strings.Contains(r.Stdout, "Manager m1 unlocked.") || r.Stderr != "" {
		t.Fatalf("the right key: %d %s %s", r.Code, r.Stdout, r.Stderr)
	}
	c.skep("secret", "create", "s2", "/tmp/two")
	c.awaitRunning("db", 2, time.Minute)
	if got := c.nodeStates()["m1"]; got != "Ready Active Leader" {
		t.Errorf("node ls: %s", got)
	}
	c.refused(1, []string{"swarm is not locked"}, "unlock")

	// A new key takes the old one's place.
	fresh := c.skep("unlock-key", "--rotate", "-q")
	if fresh == key || c.skep("unlock-key", "-q") != fresh {
		t.Error("not rotated")
	}
	restart()
	if r := unlock(key); r.Code != 1 || !regexp.MustCompile(`this manager opens with unlock key [0-9a-f]{12}, made 2\d\d\d-.*the key given is [0-9a-f]{12}, which was made 2.* and replaced 2`).MatchString(r.Stderr) {
		t.Errorf("the old key: %d %s", r.Code, r.Stderr)
	}
	for i := 2; i <= 5; i++ {
		if r := unlock(key); r.Code != 1 || strings.Contains(r.Stderr, "wrong key number 5: the next one is looked at in 10s") != (i == 5) {
			t.Errorf("wrong key %d: %d %s", i, r.Code, r.Stderr)
		}
	}
	if r := unlock(fresh); r.Code != 1 || !strings.Contains(r.Stderr, "too many wrong unlock keys") {
		t.Errorf("a right key too soon: %d %s", r.Code, r.Stderr)
	}
	c.await("the right key passes after the wait", 30*time.Second, func() string {
		if r := unlock(fresh); r.Code != 0 {
			return r.Stderr
		}
		return ""
	})
	events := c.skep("events", "--since", "1h", "--until", "0s", "--filter", "type=cluster")
	for _, want := range []string{"locked", "unlock-refused", "unlock", "unlock-key-rotate"} {
		if !strings.Contains(events, want) {
			t.Errorf("no event %s:\n%s", want, events)
		}
	}
	for _, verb := range []string{"unlock", "unlock-refused", "unlock-key-rotate"} {
		if out := c.skep("audit", "--kind", "cluster", "--format", "{{.Verb}} {{.Actor}} {{.Address}}"); !strings.Contains(out+"\n", verb+" root local\n") {
			t.Errorf("who did %s is not told:\n%s", verb, out)
		}
	}

	// Off and on again.
	c.skep("swarm", "update", "--autolock=false")
	if got := files(); got != "master.key" {
		t.Errorf("after autolock=false: %s", got)
	}
	if out := c.on("m1", "skep", "unlock-key"); out.Code != 1 || !strings.Contains(out.Stderr, "no unlock key is set") {
		t.Errorf("unlock-key while off: %s%s", out.Stdout, out.Stderr)
	}
	c.refused(1, []string{"cannot rotate because autolock is not turned on"}, "unlock-key", "--rotate")
	restart()
	c.skep("secret", "ls")
	out := c.skep("swarm", "update", "--autolock")
	third := unlockKeyForm.FindString(out)
	if !strings.HasPrefix(out, "Swarm updated.\nTo unlock a swarm manager after it restarts") || third == "" || third == fresh {
		t.Errorf("update --autolock:\n%s", out)
	}
	if got := files(); got != "master.sealed" {
		t.Errorf("after autolock: %s", got)
	}
	// No key stands anywhere on the disk, in the logs, in an argument or an environment.
	for _, k := range []string{key, fresh, third} {
		r, err := c.RunInput(c.ctx, "m1", k[10:50]+"\n", "sh", "-c",
			"cat > /dev/shm/key; grep -rlF -f /dev/shm/key /var/lib/skep /run/skep 2>/dev/null; grep -lzF -f /dev/shm/key /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; rm /dev/shm/key")
		if err != nil || r.Stdout != "" || r.Stderr != "" {
			t.Errorf("an unlock key is in %s %s %v", r.Stdout, r.Stderr, err)
		}
	}
	// From elsewhere: an admin may, an operator may not.
	for name, role := range map[string]string{"adm": "admin", "op": "operator"} {
		text := c.skep("context", "issue", "-o", "-", "--role", role, name)
		if r, err := c.RunInput(c.ctx, "client", text, "skep", "context", "import", "-", name); err != nil || r.Code != 0 {
			t.Fatalf("import %s: %v %s", name, err, r.Stderr)
		}
	}
	restart()
	remote := func(user string) lab.Result {
		t.Helper()
		r, err := c.RunInput(c.ctx, "client", third+"\n", "skep", "--context", user, "unlock")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := remote("op"); r.Code != 1 || !strings.Contains(r.Stderr, "is an operator's: it may run services, but not change") {
		t.Errorf("an operator unlocks: %d %s %s", r.Code, r.Stdout, r.Stderr)
	}
	if r := remote("adm"); r.Code != 0 || r.Stdout != "Manager m1 unlocked.\n" {
		t.Errorf("an admin unlocks: %d %s %s", r.Code, r.Stdout, r.Stderr)
	}
	c.refusedOn("client", 1, []string{"is an operator's: it may run services, but not change"}, "skep", "--context", "op", "unlock-key")

	// What a locked cluster does not need its key for.
	restart()
	c.skep("service", "rm", "web")
	if r := c.on("m1", "skep", "leave", "--force"); r.Code != 0 {
		t.Errorf("leave while locked: %s", r.Stderr)
	}
}

// Where a manager runs two vaults as processes of their own, one `skep unlock` opens both; the other services, which are
// not restarted, never notice.
func TestAutolockSeparate(t *testing.T) {
	c := up(t, lab.Options{Hosts: 1, Separate: true})
	vault := func() {
		t.Helper()
		if err := c.StartProgram(c.ctx, "m1", "skep-vault"); err != nil {
			t.Fatal(err)
		}
	}
	vault() // a second one
	out := c.skep("swarm", "update", "--autolock")
	key := unlockKeyForm.FindString(out)
	if key == "" {
		t.Fatal(out)
	}
	c.await("both vaults have sealed what they share", time.Minute, func() string {
		return strings.TrimPrefix(strings.TrimSpace(c.on("m1", "ls", "/var/lib/skep/vault").Stdout), "master.sealed")
	})
	c.kill9("m1", "skep-vault", true)
	vault()
	vault()
	c.await("both wait at the door", time.Minute, func() string {
		r := c.on("m1", "sh", "-c", "grep -c 'the vault is locked' /var/lib/skep/skep-vault.log")
		if strings.TrimSpace(r.Stdout) != "2" {
			return r.Stdout
		}
		return ""
	})
	c.refused(1, []string{"the cluster's secrets are locked: run skep unlock on m1"}, "secret", "ls")
	r, err := c.RunInput(c.ctx, "m1", key+"\n", "skep", "unlock")
	if err != nil || r.Code != 0 || r.Stdout != "Manager m1 unlocked.\n" {
		t.Fatalf("%v %d %s %s", err, r.Code, r.Stdout, r.Stderr)
	}
	for range 20 { // whichever of the two answers
		c.skep("secret", "ls")
	}
	c.skep("swarm", "update", "--autolock=false")
	c.await("in clear again", time.Minute, func() string {
		return strings.TrimPrefix(strings.TrimSpace(c.on("m1", "ls", "/var/lib/skep/vault").Stdout), "master.key")
	})
}

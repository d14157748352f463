package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/event"
	"skep.dev/libs/subject"
	"skep.dev/services/skep/cli"
)

// The nats command runs `skep decode`: the test binary is skep then.
const asCommand = "SKEP_NODE_TEST_COMMAND"

func runCommandLine(args []string) int {
	return cli.Main(context.Background(), cli.Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, NodeCommands: Commands}, args)
}

// desk is where people sit: their contexts, the nats command and skep.
type desk struct {
	t    *testing.T
	p    Paths
	home string
	env  []string
}

func newDesk(t *testing.T, p Paths) *desk {
	t.Helper()
	d := &desk{t: t, p: p, home: t.TempDir()}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(d.home, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "skep"), []byte(fmt.Sprintf("#!/bin/sh\n%s=1 exec %s \"$@\"\n", asCommand, exe)), 0o700); err != nil {
		t.Fatal(err)
	}
	d.env = append(os.Environ(), "HOME="+d.home, "XDG_CONFIG_HOME="+filepath.Join(d.home, ".config"), "PATH="+bin+":"+os.Getenv("PATH"), "NO_COLOR=1")
	return d
}

// run runs a command to its end and returns what it prints, both streams as a terminal shows them, and its exit status.
func (d *desk) run(in string, argv ...string) (string, int) {
	d.t.Helper()
	out, code, err := d.start(in, argv...)
	if err != nil {
		d.t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return out, code
}

// start is run for any goroutine.
func (d *desk) start(in string, argv ...string) (string, int, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if argv[0] == "skep" {
		cmd = exec.CommandContext(ctx, filepath.Join(d.home, "bin", "skep"), argv[1:]...)
	}
	cmd.Env, cmd.Stdin = d.env, strings.NewReader(in)
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
		err = nil
	}
	return out.String(), cmd.ProcessState.ExitCode(), err
}

// The nats command, with a context from `skep context nats`, shows each user what his role may see, and refuses the rest.
func TestNatsCommand(t *testing.T) {
	p := home(t)
	if _, err := command(t, p, "init", "--no-start", "--advertise-addr", "127.0.0.1", "--node-name", "one"); err != nil {
		t.Fatal(err)
	}
	daemon, _ := start(t, p)
	defer func() {
		_, left := command(t, p, "leave", "--force")
		if err := errors.Join(left, daemon.end()); err != nil {
			t.Error(err)
		}
	}()
	d := newDesk(t, p)
	skep := func(in string, args ...string) string {
		t.Helper()
		out, code := d.run(in, append([]string{"skep", "--run-dir", p.Run}, args...)...)
		if code != 0 {
			t.Fatalf("skep %q: %d\n%s", args, code, out)
		}
		return out
	}
	roles := []string{"admin", "operator", "viewer"}
	for _, role := range roles {
		skep(skep("", "user", "create", "-o", "-", "--role", role, "a-"+role), "context", "import", "-", role)
		events := "skep.v1.event.>"
		if role == "viewer" {
			events = "skep.v1.seen.>"
		}
		if out := skep("", "context", "nats", role); !strings.Contains(out, "nats --context skep-"+role+" sub '"+events+"'") {
			t.Errorf("context nats %s: %s", role, out)
		}
	}
	checkNats(t, d)
	checkReading(t, d)
	checkEventsLive(t, d, skep)

	// What a person sees of the events is what docs/events.md has.
	told := asRoot[skepv1.ListEventsReply](t, p, subject.API("event", "list"), &skepv1.ListEventsRequest{}).Events
	if len(told) < 5 {
		t.Errorf("only %d events", len(told))
	}
	for _, e := range told {
		sort, known := event.Of(e.Kind, e.Verb)
		for a := range e.Attributes {
			known = known && sort.May(a)
		}
		if !known {
			t.Errorf("this event is not of the list: %v", e)
		}
	}
}

// checkNats goes through commands, each as every role: what is printed to those who may, and what to those who may not.
func checkNats(t *testing.T, d *desk) {
	t.Helper()
	const violation = "Permissions Violation for "
	var all sync.WaitGroup
	few := make(chan struct{}, 10) // they mostly wait
	const decode = "| skep decode --reply --subject skep.v1.api.node.list"
	for _, c := range []struct {
		args string
		may  string   // the roles, "" = none
		says []string // to those
		code int      // of the others: a request that is not answered is no failure to nats
		text string   // to the others
	}{
		{"micro ls", "admin operator", []string{"skep-state", "skep-vault", "skep-scheduler", "skep-health", "skep-bus", "skep-agent ", "skep-agent-images", "skep-mesh ", "skep-mesh-controller", "skep-certificate"}, 0, violation + `Publish to "$SRV.INFO"`},
		{"micro info skep-agent", "admin operator", []string{"containers, images and volumes of node", ".volume.ls", "request: skep.v1.ListVolumesRequest"}, 0, violation + `Publish to "$SRV.INFO.skep-agent"`},
		{"micro stats skep-state", "admin operator", []string{"node-list", "Requests"}, 0, violation + `Publish to "$SRV.STATS.skep-state"`},
		{"req skep.v1.api.node.list '{}'", "admin operator viewer", []string{"Skep-Type: skep.v1.ListNodesReply", "Content-Type: application/json", `"hostname":"one"`}, 0, ""},
		{"req --raw skep.v1.api.node.list '' " + decode, "admin operator viewer", []string{`"hostname": "one"`}, 0, ""},
		{"req skep.v1.api.service.inspect '{\"ref\":\"none\"}'", "admin operator viewer", []string{"Nats-Service-Error-Code: not_found", "no such service: none"}, 0, ""},
		{"sub 'skep.v1.hb.*' --count 1 --translate 'skep decode --subject {{Subject}}'", "admin operator", []string{`"node_id":`, `"session":`}, 1, violation + `Subscription to "skep.v1.hb.*"`},
		{"sub 'skep.v1.event.>' --wait 1s", "admin operator", []string{"Subscribing on skep.v1.event.>"}, 1, violation + `Subscription to "skep.v1.event.>"`},
		{"sub 'skep.v1.seen.>' --wait 1s", "viewer", []string{"Subscribing on skep.v1.seen.>"}, 1, violation + `Subscription to "skep.v1.seen.>"`},
		{"req skep.v1.api.user.issued '{}'", "admin", []string{`"name":"a-viewer"`}, 0, violation + `Publish to "skep.v1.api.user.issued"`},
		{"req skep.v1.api.audit.list '{}'", "admin operator", []string{"skep.v1.ListEventsReply"}, 0, violation + `Publish to "skep.v1.api.audit.list"`},
		// Nobody changes something without saying who he is, speaks for the managers or a node, or makes up an event.
		{"req skep.v1.api.service.scale '{}'", "", nil, 0, violation + `Publish to "skep.v1.api.service.scale"`},
		{"pub skep.v1.api.service.rm.user-a-admin.local '{}'", "", nil, 1, violation + `Publish to "skep.v1.api.service.rm.user-a-admin.local"`},
		{"pub skep.v1.svc.state.status.anode x", "", nil, 1, violation + `Publish to "skep.v1.svc.state.status.anode"`},
		{"pub skep.v1.push.anode x", "", nil, 1, violation + `Publish to "skep.v1.push.anode"`},
		{"pub skep.v1.event.service.x.create '{}'", "", nil, 1, violation + `Publish to "skep.v1.event.service.x.create"`},
		{"pub '$KV.spec.cluster' x", "", nil, 1, violation + `Publish to "$KV.spec.cluster"`},
		// Nobody has JetStream's own API, whose rights would be those of the broker; see checkReading.
		{"req '$JS.API.STREAM.INFO.KV_spec' ''", "", nil, 0, violation + `Publish to "$JS.API.STREAM.INFO.KV_spec"`},
		{"req '$JS.API.CONSUMER.CREATE.EVENTS.x' ''", "", nil, 0, violation + `Publish to "$JS.API.CONSUMER.CREATE.EVENTS.x"`},
		{"sub '$KV.secret.>' --wait 1s", "", nil, 1, violation + `Subscription to "$KV.secret.>"`},
		{"sub '>' --wait 1s", "", nil, 1, violation + `Subscription to ">"`},
		{"server info", "", nil, 1, violation + `Publish to "$SYS.REQ.SERVER.PING.VARZ"`},
	} {
		for _, role := range []string{"admin", "operator", "viewer"} {
			// What is refused is told at once, and nats waits until its time is up; what is not may take its time.
			within, refused := "30s", !strings.Contains(c.may, role)
			if refused {
				within = "8s"
			}
			all.Go(func() {
				few <- struct{}{}
				defer func() { <-few }()
				out, code, err := d.start("", "sh", "-c", "nats --context skep-"+role+" --timeout "+within+" "+c.args)
				says, want := c.says, 0
				if refused {
					says, want = []string{c.text}, c.code
				}
				if err != nil || code != want {
					t.Errorf("%s: nats %s: exit status %d, want %d (%v)\n%s", role, c.args, code, want, err, out)
				}
				for _, s := range says {
					if !strings.Contains(out, s) {
						t.Errorf("%s: nats %s does not say %q\n%s", role, c.args, s, out)
					}
				}
				if !refused && strings.Contains(out, violation) {
					t.Errorf("%s: nats %s is refused\n%s", role, c.args, out)
				}
			})
		}
	}
	all.Wait()
}

// checkReading goes through what reads and writes JetStream: people who may see values read all but the vault's, nobody writes, and
// a viewer has none of it.
func checkReading(t *testing.T, d *desk) {
	t.Helper()
	const violation = "Permissions Violation for "
	var all sync.WaitGroup
	for _, c := range []struct {
		args   string
		says   []string // to an admin and an operator
		not    string
		code   int
		viewer string // what a viewer is told of
	}{
		{"stream ls -n", []string{"EVENTS", "KV_spec", "KV_task"}, "KV_secret", 0, violation + `Publish to "$JS.API.STREAM.`},
		{"stream info KV_spec", []string{"Information for Stream KV_spec", "$KV.spec.>"}, "", 0, violation + `Publish to "$JS.API.STREAM.INFO.KV_spec"`},
		{"kv ls -n", []string{"spec", "lease"}, "secret", 0, violation + `Publish to "$JS.API.STREAM.`},
		{"kv ls node", []string{"managers", "desc."}, "", 0, violation + `Publish to "$JS.API.STREAM.INFO.KV_node"`},
		{"kv get --raw spec cluster | skep decode --subject '$KV.spec.cluster'", []string{`"name": "default"`}, "", 0, ""},
		{"stream get EVENTS 1", []string{"skep.v1.event.cluster.kept.create"}, "", 0, violation + `Publish to "$JS.API.STREAM.INFO.EVENTS"`},
		{"stream view EVENTS 10", []string{"Subject: skep.v1.event.cluster.kept.create", `"verb":"create"`, "Reached apparent end of data"}, violation, 0, violation + `Publish to "$JS.API.STREAM.INFO.EVENTS"`},
		{"kv watch lease", []string{"PUT", "lease > scheduler: "}, violation, 124, violation + `Publish to "$JS.API.STREAM.INFO.KV_lease"`},
		{"stream info KV_secret", []string{"could not pick a Stream"}, "", 1, violation},
		{"kv get value x", []string{"bucket not found"}, "", 1, violation},
		{"kv put spec cluster x", []string{"the store is only read here: $KV.spec.cluster is not for people"}, "", 1, violation},
		{"stream rm -f EVENTS", []string{"the store is only read here: STREAM.DELETE.EVENTS is not for people"}, "", 1, violation},
		{"stream purge -f EVENTS", []string{"the store is only read here: STREAM.PURGE.EVENTS is not for people"}, "", 1, violation},
		{"stream rmm -f EVENTS 1", []string{"the store is only read here: STREAM.MSG.DELETE.EVENTS is not for people"}, "", 1, violation},
	} {
		for _, role := range []string{"admin", "operator", "viewer"} {
			all.Go(func() {
				line := "nats --context skep-" + role + " --timeout 20s " + c.args
				switch {
				case role == "viewer":
					line = strings.Replace(line, "20s", "4s", 1)
				case c.code == 124:
					line = "timeout 6 " + line
				}
				if strings.HasPrefix(c.args, "stream view") { // it wants a terminal
					line = `script -qec "` + line + `" /dev/null`
				}
				out, code, err := d.start("", "sh", "-c", line)
				if role == "viewer" {
					if err != nil || c.viewer == "" && strings.Contains(out, "default") || !strings.Contains(out, c.viewer) {
						t.Errorf("viewer: nats %s: %d (%v)\n%s", c.args, code, err, out)
					}
					return
				}
				if err != nil || code != c.code {
					t.Errorf("%s: nats %s: exit status %d, want %d (%v)\n%s", role, c.args, code, c.code, err, out)
				}
				for _, s := range c.says {
					if !strings.Contains(out, s) {
						t.Errorf("%s: nats %s does not say %q\n%s", role, c.args, s, out)
					}
				}
				if c.not != "" && strings.Contains(out, c.not) {
					t.Errorf("%s: nats %s says %q\n%s", role, c.args, c.not, out)
				}
			})
		}
	}
	all.Wait()
}

// checkEventsLive makes networks until an operator and a viewer have each heard of one: the one who did it, the other not.
func checkEventsLive(t *testing.T, d *desk, skep func(in string, args ...string) string) {
	t.Helper()
	heard := map[string]chan string{"operator": make(chan string, 1), "viewer": make(chan string, 1)}
	for role, on := range map[string]string{"operator": "skep.v1.event.network.>", "viewer": "skep.v1.seen.network.>"} {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "nats", "--context", "skep-"+role, "sub", on, "--count", "1")
			cmd.Env = d.env
			out, _ := cmd.CombinedOutput() // what it prints is looked at
			heard[role] <- string(out)
		}()
	}
	got := map[string]string{}
	for i := 0; len(got) < len(heard); i++ {
		skep("", "network", "create", fmt.Sprint("net", i))
		for role := range heard {
			select {
			case out := <-heard[role]:
				got[role] = out
			case <-time.After(200 * time.Millisecond):
			}
		}
		if i > 200 {
			t.Fatalf("nobody hears of %d networks: %q", i, got)
		}
	}
	for role, says := range map[string][]string{
		"operator": {`Received on "skep.v1.event.network.`, `.create"`, "Content-Type: application/json", "Skep-Type: skep.v1.Event", "Nats-Msg-Id: ", `"kind":"network"`, `"verb":"create"`, `"name":"net`, `"actor":"root"`, `"address":"local"`},
		"viewer":   {`Received on "skep.v1.seen.network.`, `"kind":"network"`, `"name":"net`},
	} {
		for _, s := range says {
			if !strings.Contains(got[role], s) {
				t.Errorf("%s: the event has no %s\n%s", role, s, got[role])
			}
		}
	}
	if strings.Contains(got["viewer"], "actor") || strings.Contains(got["viewer"], "address") {
		t.Errorf("a viewer hears who did it: %s", got["viewer"])
	}
}

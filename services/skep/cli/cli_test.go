package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

const (
	running = skepv1.TaskState_TASK_STATE_RUNNING
	pending = skepv1.TaskState_TASK_STATE_PENDING
)

func want(t *testing.T, r result, code int, out, errs string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit status %d, want %d", r.code, code)
	}
	if !strings.Contains(r.out, out) {
		t.Errorf("output %q lacks %q", r.out, out)
	}
	if !strings.Contains(r.err, errs) {
		t.Errorf("messages %q lack %q", r.err, errs)
	}
	if t.Failed() {
		t.Logf("status %d\n%s\n%s", r.code, r.out, r.err)
	}
}

func TestCreateWaits(t *testing.T) {
	c := newCluster(t)
	c.looked = func(n int) {
		switch n {
		case 2:
			c.tasks = []*skepv1.Task{webTask("t1", 1, pending)}
		case 3:
			c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
		}
	}
	began := time.Now()
	r := c.run("service", "create", "--name", "web", "-e", "A=1", "httpd", "sleep", "-x")
	want(t, r, 0, webID+"\n", "web.1: running on w1")
	if r.out != webID+"\n" {
		t.Errorf("standard output must be the id alone: %q", r.out)
	}
	if !strings.Contains(r.err, "Warning: image tag left as it is") || !strings.Contains(r.err, "verify: Service web converged") {
		t.Errorf("messages %q", r.err)
	}
	if d := time.Since(began); d < stableFor {
		t.Errorf("returned after %s", d)
	}
	s := sent[*skepv1.CreateServiceRequest](c).Spec
	if s.Name != "web" || s.Task.Container.Image != "httpd" || strings.Join(s.Task.Container.Args, " ") != "sleep -x" {
		t.Errorf("sent %v", s)
	}
}

func TestCreateDetached(t *testing.T) {
	c := newCluster(t)
	want(t, c.run("service", "create", "-d", "httpd"), 0, webID, "")
	if n := sent[*skepv1.CreateServiceRequest](c).Spec.Name; n == "" {
		t.Error("no name was made up")
	}
}

func TestExitCodes(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	for _, x := range []struct {
		args      string
		code      int
		out, errs string
	}{
		{"service inspect wbe", 1, "[]", "Error: no such service: wbe; did you mean web_server?"},
		{"service rm nope", 1, "", "no such service: nope"},
		{"service rm", 2, "", "'skep service rm' requires at least 1 argument"},
		{"service create", 2, "", "'skep service create' requires at least 1 argument"},
		{"service update --rollback --env-add a=b web", 2, "", "other flags may not be combined with --rollback"},
		{"service update --publish 8080:80 web", 2, "", "did you mean --publish-add?"},
		{"service update web web2", 2, "", "requires 1 argument"},
		{"service create --replica 2 img", 2, "", "did you mean --replicas?"},
		{"service create --mode x img", 2, "", "unknown mode: x"},
		{"service create --mode global --replicas 2 img", 2, "", "replicas can only be used with replicated"},
		{"service create --name a_ img", 2, "", "name must be valid as a DNS name component"},
		{"service create --limit-memory 1m img", 2, "", "Must be at least 4MiB"},
		{"service create Bad!Image", 2, "", "not a valid repository/tag"},
		{"service create --constraint a=b img", 2, "", "constraint expected one operator"},
		{"service scale web", 2, "", "invalid scale specifier 'web'"},
		{"service scale web=x", 2, "", "web: invalid replicas value x"},
		{"service scale web=2 wbe=3", 1, "", "no such service: wbe"},
		{"service scale --timeout -1s web=2", 2, "", "timeout cannot be negative"},
		{"service create --timeout 5 img", 2, "", `"5" is not a duration`},
		{"service explain wbe", 1, "", "no such service: wbe; did you mean web_server?"},
		{"version --format {{.Bad}}", 2, "", `no entry for key "Bad"`},
		{"service rollback --to 0 web", 2, "", "revisions are numbered from 1"},
		{"service ls --filter x", 2, "", "invalid filter 'x'"},
		{"service ls --format {{.Nope}}", 2, "", "template parsing error"},
		{"service inspect --pretty --format x web", 2, "", "--format is incompatible with human friendly format"},
		{"servce ls", 2, "", `did you mean "service"?`},
		{"service lss", 2, "", `did you mean "ls"?`},
		{"node update --availability darin w1", 2, "", `invalid availability "darin", only active, pause and drain are supported`},
		{"node update w1", 2, "", "nothing to change"},
		{"node ls x", 2, "", "accepts no arguments"},
		{"join-token worke", 2, "", "unknown role worke"},
		{"swarm update --cert-expiry 1m", 2, "", "minimum certificate expiry time is: 1h0m0s"},
		{"service logs nope", 1, "", "no such task or service: nope"},
		{"service logs --tail x web", 2, "", "invalid --tail"},
		{"exec nope.1 ls", 1, "", "no such task"},
		{"decode --type Nope", 2, "", "unknown message type"},
		{"events --since x", 2, "", "invalid --since"},
		{"context use nope", 1, "", `context "nope" does not exist`},
	} {
		t.Run(x.args, func(t *testing.T) { want(t, c.run(strings.Fields(x.args)...), x.code, x.out, x.errs) })
	}
}

func TestUpdateOutcomes(t *testing.T) {
	for _, x := range []struct {
		state string
		code  int
		errs  string
	}{
		{"paused", 1, "service update paused: task x failed"},
		{"rollback_completed", 3, "service rolled back: task x failed"},
	} {
		t.Run(x.state, func(t *testing.T) {
			c := newCluster(t)
			c.services = []*skepv1.Service{webService()}
			c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
			c.looked = func(int) {
				c.services[0].UpdateStatus = &skepv1.UpdateStatus{State: x.state, Message: "task x failed"}
			}
			want(t, c.run("service", "update", "--image", "httpd:2", "web"), x.code, "web\n", x.errs)
			if r := sent[*skepv1.UpdateServiceRequest](c); r.Version != 3 || r.Spec.Task.Container.Image != "httpd:2" {
				t.Errorf("sent %v", r)
			}
		})
	}
}

// TestUpdateRetries: somebody else's change in between is no reason to bother the user.
func TestUpdateRetries(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	n := 0
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.UpdateServiceRequest); ok {
			if n++; n < 3 {
				return fault.New(fault.CodeSequence, "update out of sequence")
			}
		}
		return nil
	}
	want(t, c.run("service", "update", "-d", "--env-add", "A=1", "web"), 0, "web\n", "")
}

func TestRollback(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	want(t, c.run("service", "rollback", "-d", "--to", "2", "web"), 0, "web\n", "")
	if r := sent[*skepv1.UpdateServiceRequest](c); !r.Rollback || r.RollbackRevision != 2 {
		t.Errorf("sent %v", r)
	}
	want(t, c.run("service", "update", "--rollback", "-d", "web"), 0, "web\n", "")
	if r := sent[*skepv1.UpdateServiceRequest](c); !r.Rollback || r.RollbackRevision != 0 {
		t.Errorf("sent %v", r)
	}
}

func TestTimeout(t *testing.T) {
	c := newCluster(t)
	k := webTask("t1", 1, pending)
	k.Status.Err = "no suitable node (insufficient resources on 1 node)"
	c.tasks = []*skepv1.Task{k}
	want(t, c.run("service", "create", "--name", "web", "--timeout", "200ms", "httpd"), 4, webID, "no suitable node (insufficient resources on 1 node)")
}

func TestCtrlCLeavesItRunning(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	c.looked = func(n int) {
		if n == 2 {
			cancel()
		}
	}
	want(t, c.runCtx(ctx, "service", "create", "--name", "web", "httpd"), 130, webID, "Operation continuing in background.")
}

func TestScale(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
	want(t, c.run("service", "scale", "web=1"), 0, "web scaled to 1\n", "converged")
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.ScaleServiceRequest); ok {
			return fault.Invalid("scale can only be used with replicated or replicated-job mode")
		}
		return nil
	}
	want(t, c.run("service", "scale", "web=2"), 1, "", "web: scale can only be used with replicated or replicated-job mode")
}

func TestRemoveWaitsForTasks(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
	c.looked = func(n int) {
		if n > 1 {
			c.tasks = nil
		}
	}
	want(t, c.run("service", "rm", "web"), 0, "web\n", "waiting for 1 task to stop on w1")
	if c.looks < 2 {
		t.Error("did not wait")
	}
}

// TestEventsEndTheWaitSoon: a change is seen through its event, not at the next second.
func TestEventsEndTheWaitSoon(t *testing.T) {
	c := newCluster(t)
	stop := make(chan struct{})
	c.looked = func(n int) {
		if n == 7 { // by now looks are a second apart
			c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
			close(stop)
		}
	}
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(40 * time.Millisecond):
				c.publish(&skepv1.Event{Kind: "task", Id: "t1", Verb: "running", Attributes: map[string]string{"service.id": webID}})
			}
		}
	}()
	began := time.Now()
	want(t, c.run("service", "create", "--name", "web", "httpd"), 0, webID, "")
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestDryRun(t *testing.T) {
	c := newCluster(t)
	want(t, c.run("service", "create", "--dry-run", "--name", "web", "httpd"), 0, "create web.1 on w1", "")
	if !sent[*skepv1.CreateServiceRequest](c).DryRun || len(c.services) != 0 {
		t.Error("something was created")
	}
	c.services = []*skepv1.Service{webService()}
	want(t, c.run("service", "update", "--dry-run", "--image", "x", "web"), 0, "create web.1 on w1", "")
	want(t, c.run("service", "scale", "--dry-run", "web=3"), 0, "create web.1 on w1", "")
	want(t, c.run("service", "rm", "--dry-run", "web"), 0, "remove web.1 on w1", "")
	if len(c.services) != 1 {
		t.Error("a dry run removed it")
	}
}

func TestListsAndInspect(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	second := proto.CloneOf(c.nodes[0])
	second.Meta.Id, second.Description.Hostname = "nodenodenodenodenodenode2", "w2"
	c.nodes = append(c.nodes, second)
	c.tasks = []*skepv1.Task{webTask("t2aaaaaaaaaaaaaaaaaaaaaaa", 2, running), webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, pending)}
	var b strings.Builder
	for _, args := range []string{
		"service ls", "service ls -q", "service ls --json", "service ls --format json", "service ps web", "service ps", "service ps -q web", "service ps web nope",
		"node ls", "node ls -q", "node ps", "node ps w2", "task ls", "service inspect web", "service inspect --format {{.Spec.Name}} web", "service inspect --pretty web",
		"node inspect self --format {{.Description.Hostname}}", "task inspect t1a --format {{.Status.State}}", "task inspect web.2 --format {{.ID}}", "service explain web", "service history web",
		"node promote w1", "node demote w1", "node rm w1 w2", "node update --availability drain w1", "join-token worker", "join-token -q manager", "join-token --rotate worker", "swarm join-token -q worker",
		"swarm update --task-history-limit 3", "events --since 10m --until 0s --json", "context ls", "context show", "version", "info", "context inspect",
	} {
		r := c.run(strings.Fields(args)...)
		b.WriteString("$ skep " + args + "\n" + r.out)
		if r.err != "" {
			b.WriteString("! " + r.err)
		}
		if r.code != 0 {
			b.WriteString("exit status " + string(rune('0'+r.code)) + "\n")
		}
	}
	text := b.String()
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, " Go version:") || strings.HasPrefix(line, " OS/Arch:") {
			text = strings.Replace(text, line+"\n", "", 1)
		}
	}
	golden.Check(t, "session", text)
	if u := sent[*skepv1.UpdateClusterRequest](c); u.Version != 5 || u.Spec.TaskHistoryLimit != 3 {
		t.Errorf("cluster update sent %v", u)
	}
}

func TestCompletion(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t1", 1, running)}
	for args, wants := range map[string]string{
		"service rm ": "web", "service scale ": "web=", "service logs ": "web.1", "node update --availability ": "drain", "node ps ": "self", "exec ": "web.1", "service create --mode ": "global-job",
		"image ls --node ": "all", "context use ": "default", "join-token ": "manager", "decode --type Li": "ListServicesReply",
	} {
		words := strings.Split(args, " ")
		r := c.run(append([]string{"__complete"}, words...)...)
		found := false
		for _, l := range strings.Split(r.out, "\n") {
			found = found || strings.SplitN(l, "\t", 2)[0] == wants
		}
		if !found {
			t.Errorf("completing %q offers\n%s", args, r.out)
		}
	}
	if r := c.run("completion", "bash"); r.code != 0 || !strings.Contains(r.out, "__start_skep") {
		t.Errorf("completion bash: %d %.200s", r.code, r.out)
	}
}

// TestRemoveWithANodeDown: what a dead node runs is not waited for, it is told.
func TestRemoveWithANodeDown(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{{Meta: &skepv1.Meta{Id: "t1"}, Name: "web.1", ServiceId: webID, NodeId: nodeID,
		Status: &skepv1.TaskStatus{State: skepv1.TaskState_TASK_STATE_RUNNING}}}
	c.nodes[0].Status.State = skepv1.NodeState_NODE_STATE_DOWN
	want(t, c.run("service", "rm", "--timeout", "20s", "web"), 0, "web", "Warning: node w1 is down")
}

func TestNodeCommandsAlsoUnderSwarm(t *testing.T) {
	root := New(Env{NodeCommands: func(root *cobra.Command) {
		root.AddCommand(&cobra.Command{Use: "init"}, &cobra.Command{Use: "join"}, &cobra.Command{Use: "leave"})
		if n, _, err := root.Find([]string{"node"}); err == nil && n != root {
			n.AddCommand(&cobra.Command{Use: "run"})
		}
	}})
	for _, path := range []string{"init", "join", "leave", "swarm init", "swarm join", "swarm leave", "node run", "swarm join-token", "swarm update"} {
		words := strings.Fields(path)
		if c, _, err := root.Find(words); err != nil || c.Name() != words[len(words)-1] {
			t.Errorf("%s: %v %v", path, c.Name(), err)
		}
	}
}

// TestArgumentsOfOthers: wrong arguments are wrong usage also where a command checks them with cobra's own functions.
func TestArgumentsOfOthers(t *testing.T) {
	nothing := func(*cobra.Command, []string) error { return nil }
	for line, text := range map[string]string{
		"join":            "'skep join' accepts 1 arg(s), received 0",
		"swarm join a b":  "'skep swarm join' accepts 1 arg(s), received 2",
		"leave now":       "'skep leave' accepts no arguments",
		"service scale":   "'skep service scale' requires at least 1 argument",
		"nosuch":          "unknown command: skep nosuch",
		"service lsx now": "unknown command: skep service lsx",
	} {
		var out, errs safeBuffer
		env := Env{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: func(string) string { return "" }, NodeCommands: func(root *cobra.Command) {
			root.AddCommand(&cobra.Command{Use: "join", Args: cobra.ExactArgs(1), RunE: nothing}, &cobra.Command{Use: "leave", Args: cobra.NoArgs, RunE: nothing})
		}}
		if code := Main(t.Context(), env, strings.Fields(line)); code != 2 || !strings.Contains(errs.String(), "Error: "+text) || !strings.Contains(errs.String(), "Usage:") {
			t.Errorf("%s: %d %s", line, code, errs.String())
		}
	}
}

// TestNoCluster: without a daemon, and on a worker, the texts of Swarm.
func TestNoCluster(t *testing.T) {
	dir := t.TempDir()
	var out, errs safeBuffer
	env := Env{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: func(k string) string { return map[string]string{"HOME": dir, "SKEP_RUN_DIR": dir}[k] }}
	if code := Main(t.Context(), env, []string{"service", "ls"}); code != 1 || !strings.Contains(errs.String(), "This node is not part of a swarm") {
		t.Errorf("%d %s", code, errs.String())
	}
}

func TestDecode(t *testing.T) {
	c := newCluster(t)
	body, err := proto.Marshal(&skepv1.Heartbeat{NodeId: "n1", Running: 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"--type Heartbeat", "--type skep.v1.Heartbeat", "--subject skep.v1.hb.n1"} {
		var out, errs safeBuffer
		env := c.env(&out, &errs)
		env.In = strings.NewReader(string(body))
		if code := Main(t.Context(), env, append([]string{"decode"}, strings.Fields(args)...)); code != 0 || !strings.Contains(out.String(), `"node_id": "n1"`) {
			t.Errorf("%s: %d %s %s", args, code, out.String(), errs.String())
		}
	}
	for subj, name := range map[string]string{
		"skep.v1.api.service.create": "CreateServiceRequest", "$KV.spec.service.x": "Service", "$KV.task.n1": "NodeTasks", "$KV.task.rollout.x": "Rollout", "$KV.node.live.n": "NodeLive",
		"skep.v1.svc.state.status.n1": "NodeStatus", "skep.v1.node.n1.image.load.open": "LoadImageRequest", "skep.v1.push.n1": "NodeTasks", "foo": "",
		"skep.v1.node.n1.mesh.counters": "MeshCountersRequest", "skep.v1.svc.health.path.n1": "MeshPathReport",
	} {
		if got := messageOf(subj, false); got != name {
			t.Errorf("%s carries %s, want %s", subj, got, name)
		}
	}
	for _, v := range api.All() {
		for reply, want := range map[bool]protoreflect.MessageType{false: v.Request, true: v.Reply} {
			if got := messageOf(v.Subject, reply); got != string(want.Descriptor().Name()) {
				t.Errorf("%s, reply %v: carries %q, want %s", v.Subject, reply, got, want.Descriptor().Name())
			}
		}
	}
}

package cli

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/printable"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
)

// hostile is what a node, a container or a user may put into any text: a title for the terminal, a line and a cell of
// its own, C1 controls, bidi and zero-width characters.
const hostile = "x\x1b]0;title\a\x1b[2J\r\n\tFORGED\u009b31m\u202e\u2066\u200b\u2028\x7fß節🚢"

// lookedUp are the fields by which a test and a command find objects again; a command prints them as it prints others.
var lookedUp = regexp.MustCompile(`(^|_)(id|next|scope)$`)

// poison makes every text of a message hostile, also of messages it might hold and does not.
func poison(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		text := f.Kind() == protoreflect.StringKind && !lookedUp.MatchString(string(f.Name()))
		inner := f.Kind() == protoreflect.MessageKind && depth < 8
		other := f.ContainingOneof() != nil && m.WhichOneof(f.ContainingOneof()) != nil && !m.Has(f)
		switch {
		case other:
		case f.IsMap():
			if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(hostile).MapKey(), protoreflect.ValueOfString(hostile))
			}
		case f.IsList() && text:
			m.Mutable(f).List().Append(protoreflect.ValueOfString(hostile))
		case f.IsList() && inner:
			l := m.Mutable(f).List()
			if l.Len() == 0 {
				l.AppendMutable()
			}
			for j := range l.Len() {
				poison(l.Get(j).Message(), depth+1)
			}
		case f.IsList():
		case text:
			m.Set(f, protoreflect.ValueOfString(hostile))
		case inner && f.Message().ParentFile().Package() == "skep.v1":
			poison(m.Mutable(f).Message(), depth+1)
		}
	}
}

// hostileCluster answers everything a command may ask, in full and hostile.
func hostileCluster(t *testing.T) *cluster {
	c := meshCluster(t)
	web := c.services[0]
	web.Revision, web.PreviousRevision = 2, 1
	web.Spec.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{MaxConcurrent: 1, TotalCompletions: 1}}}
	web.Run = &skepv1.RunControl{Iteration: 1}
	c.tasks = append(c.tasks, webTask("t2", 2, skepv1.TaskState_TASK_STATE_FAILED))
	reply := func(*skepv1.Ref) (*skepv1.ServiceReply, error) { return &skepv1.ServiceReply{Service: web}, nil }
	serve(c, c.rs, api.ServiceRun, func(*skepv1.RunServiceRequest) (*skepv1.ServiceReply, error) { return reply(nil) })
	serve(c, c.rs, api.ServiceRollout, func(*skepv1.RolloutRequest) (*skepv1.ServiceReply, error) { return reply(nil) })
	serve(c, c.rs, api.UserIssue, func(*skepv1.IssueUserRequest) (*skepv1.IssueUserReply, error) { return &skepv1.IssueUserReply{}, nil })
	certificates := []*skepv1.UserCertificate{{Serial: "s", NotAfter: timestamppb.Now(), IssuedAt: timestamppb.Now()}, {Serial: "t", NotAfter: timestamppb.Now(), IssuedBy: "user-" + hostile, RevokedAt: timestamppb.Now()}}
	serve(c, c.rs, api.UserIssued, func(*skepv1.Empty) (*skepv1.IssuedUsersReply, error) {
		return &skepv1.IssuedUsersReply{Certificates: certificates}, nil
	})
	serve(c, c.rs, api.UserRevoke, func(*skepv1.RevokeUserRequest) (*skepv1.RevokeUserReply, error) {
		return &skepv1.RevokeUserReply{Revoked: certificates}, nil
	})
	serve(c, c.rs, api.AuditList, func(*skepv1.ListAuditRequest) (*skepv1.ListEventsReply, error) {
		return &skepv1.ListEventsReply{Events: []*skepv1.Event{{Kind: "service", Attributes: map[string]string{hostile: hostile}}}}, nil
	})
	serve(c, c.rs, api.VaultBackups.At(nodeID), func(*skepv1.Empty) (*skepv1.KeptBackupsReply, error) {
		return &skepv1.KeptBackupsReply{Hostname: hostile, Failed: hostile, Backups: []*skepv1.KeptBackup{{Name: hostile, Header: &skepv1.BackupHeader{
			SkepVersion: hostile, MadeOn: hostile, ClusterId: hostile, UnlockKey: &skepv1.BackupUnlockKey{Id: hostile}}}}}, nil
	})
	serve(c, c.rs, api.AutolockGet, func(*skepv1.Empty) (*skepv1.AutolockState, error) {
		return &skepv1.AutolockState{On: true, Managers: []*skepv1.ManagerLock{{NodeId: nodeID, Locked: true}}}, nil
	})
	serve(c, c.rs, api.AutolockKey, func(*skepv1.UnlockKeyRequest) (*skepv1.UnlockKeyReply, error) { return &skepv1.UnlockKeyReply{}, nil })
	onNode(c, api.VaultDoor.At(nodeID), func(*skepv1.VaultDoorRequest) (*skepv1.VaultDoor, error) { return &skepv1.VaultDoor{}, nil })
	for _, id := range []string{nodeID, node2} {
		onNode(c, api.ImageList.At(id), func(*skepv1.ListImagesRequest) (*skepv1.ListImagesReply, error) {
			return &skepv1.ListImagesReply{}, nil
		})
		onNode(c, api.ImagePull.At(id), func(*skepv1.PullImageRequest) (*skepv1.PullImageReply, error) { return &skepv1.PullImageReply{}, nil })
		onNode(c, api.ImageRemove.At(id), func(*skepv1.RemoveImageRequest) (*skepv1.RemoveImageReply, error) {
			return &skepv1.RemoveImageReply{}, nil
		})
	}
	serve(c, c.rs, api.TaskUnknown, func(*skepv1.ListUnknownTasksRequest) (*skepv1.ListUnknownTasksReply, error) {
		return &skepv1.ListUnknownTasksReply{Kept: true, Tasks: []*skepv1.UnknownTask{{TaskId: "t"}}, Missing: []string{"w1"}}, nil
	})
	c.upkeep.claims = []*skepv1.VolumeClaim{{Name: "v"}}
	serve(c, c.rs, api.VolumeRelease, func(*skepv1.ReleaseClaimRequest) (*skepv1.ReleaseClaimReply, error) {
		return &skepv1.ReleaseClaimReply{}, nil
	})
	serve(c, c.rs, api.NodeFence, func(*skepv1.FenceNodeRequest) (*skepv1.NodeReply, error) { return &skepv1.NodeReply{}, nil })
	for _, id := range []string{nodeID, node2} {
		onNode(c, api.VolumeCreate.At(id), func(*skepv1.CreateVolumeRequest) (*skepv1.VolumeReply, error) { return &skepv1.VolumeReply{}, nil })
		onNode(c, api.VolumeList.At(id), func(*skepv1.ListVolumesRequest) (*skepv1.ListVolumesReply, error) {
			return &skepv1.ListVolumesReply{}, nil
		})
		onNode(c, api.VolumeUpdate.At(id), func(*skepv1.UpdateVolumeRequest) (*skepv1.VolumeReply, error) { return &skepv1.VolumeReply{}, nil })
		onNode(c, api.VolumeRemove.At(id), func(*skepv1.RemoveVolumeRequest) (*skepv1.Empty, error) { return &skepv1.Empty{}, nil })
		onNode(c, api.VolumePrune.At(id), func(*skepv1.PruneVolumesRequest) (*skepv1.PruneVolumesReply, error) {
			return &skepv1.PruneVolumesReply{}, nil
		})
	}
	c.onNode(api.LogsOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, _ []byte) {
		w := s.Writer(stream.Out)
		logLine(w, 1, "\x1b[31mred\x1b[0m "+hostile+"\xff\r\n", false)
		logLine(w, 2, hostile, true)
		_ = w.Close()
		_ = s.Exit(0, nil)
	})
	c.onNode(api.ExecOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, _ []byte) {
		_ = s.Accept()
		_ = s.Exit(127, fault.Invalid("exec: %s", hostile))
	})
	c.onNode(api.ImageOpen.At(nodeID).Subject(), func(_ context.Context, s *stream.Session, _ []byte) {
		_ = s.Accept()
		_ = s.Exit(1, fault.Invalid("load: %s", hostile))
	})
	c.revs = []*skepv1.Revision{{Number: 1, Spec: web.Spec}, {Number: 2, Spec: proto.CloneOf(web.Spec)}}
	c.revs[1].Spec.Labels = map[string]string{"k" + hostile: hostile}
	c.withStacks()
	shop := &skepv1.Stack{Meta: &skepv1.Meta{Id: stackID("shop")}, Name: "shop", Revision: 2, State: skepv1.StackState_STACK_STATE_DEPLOYING, Spec: &skepv1.StackSpec{Name: "shop", Services: []*skepv1.ServiceSpec{web.Spec}}}
	c.stacks.list, c.stacks.stays = append(c.stacks.list, shop), true
	c.stacks.revs["shop"] = []*skepv1.StackRevision{{Number: 2, Spec: shop.Spec}, {Number: 1, Spec: &skepv1.StackSpec{}}}
	c.vault.lost = []*skepv1.SecretUse{{ServiceName: "old", Revisions: []uint64{1}}}
	c.poison = func(m proto.Message) {
		poison(m.ProtoReflect(), 0)
		if k, is := m.(*skepv1.VaultKey); is { // what is sealed to it is of no interest, that it is sealed is
			proto.Reset(k)
			proto.Merge(k, c.vault.public)
		}
	}
	return c
}

// commandLines are one for every command of the tree that speaks of the cluster. A command that is not here fails the
// test below: give it a line.
var commandLines = map[string]string{
	"backup create": "--unlock-key -", "backup ls": "", "backup unknown": "", "backup settle": "--stop-unknown",
	"audit": "--since 1h", "ca": "", "swarm ca": "--json", "user create": "-o - --role viewer alice", "user ls": "", "user rm": "alice",
	"context issue": "-o - alice", "context issued": "", "context revoke": "alice", "doctor": "", "events": "--since 1h --until 1s", "exec": "t1 sh", "image load": "--node " + nodeID, "image ls": "", "image pull": "--node " + nodeID + " img",
	"image rm": "--node " + nodeID + " img", "info": "", "join-token": "worker", "logs": webID, "mesh ls": "--node all", "mesh trace": "--node all 8080", "network create": "other",
	"network inspect": frontID, "network ls": "", "network prune": "-f", "network rm": frontID, "node demote": "-d " + nodeID, "node inspect": nodeID, "node ls": "", "node promote": "-d " + nodeID,
	"node ps": nodeID, "node rm": nodeID, "node prune": "--dry-run --down-for 0s", "node update": "--availability drain " + nodeID, "service abort": "-d " + webID, "service create": "-d img", "service diff": webID + " 1 2",
	"service explain": webID, "service history": webID, "service inspect": webID, "service logs": webID, "service ls": "", "service promote": "-d " + webID, "service ps": webID,
	"service rm": "-d " + webID, "service rollback": "-d " + webID, "service run": "-d " + webID, "service runs": webID, "service scale": "-d " + webID + "=2", "service update": "-d --force " + webID,
	"stack deploy": "-d -c testdata/stack.yaml shop", "stack diff": stackID("shop"), "stack history": stackID("shop"), "stack logs": stackID("shop"), "stack ls": "", "stack ps": stackID("shop"),
	"stack rm": "-d " + stackID("shop"), "stack rollback": "-d --to 1 " + stackID("shop"), "stack services": stackID("shop"),
	"secret create": "--random 8 new", "secret history": "pw", "secret inspect": "pw", "secret ls": "", "secret rm": "tls", "secret rollback": "pw 1", "secret update": "--random 8 pw",
	"config create": "--random 8 new", "config history": "web.conf", "config inspect": "web.conf", "config ls": "", "config rm": "web.conf", "config rollback": "web.conf 1", "config update": "--random 8 web.conf",
	"swarm join-token": "worker", "swarm unlock": "", "swarm unlock-key": "", "unlock": "", "unlock-key": "", "swarm update": "--task-history-limit 3", "task inspect": "t1", "task ls": "", "top": "--once --interval 200ms",
	"volume create": "--node " + nodeID + " v", "volume inspect": "--node " + nodeID + " v", "volume ls": "", "volume prune": "-f --node " + nodeID, "volume rm": "--node " + nodeID + " v",
	"volume claims": "", "volume release": "v", "node fence": nodeID,
	"volume update": "--node " + nodeID + " --label-add a=b v",
}

// localCommands speak of this machine alone.
var localCommands = map[string]string{
	"backup inspect": "/none",
	"context create": "--addr h --cert /none --key /none --ca /none bad", "context export": "evil -o -", "login": "-u x --password-stdin 127.0.0.1:1", "logout": "127.0.0.1:1", "context import": "/none", "context inspect": "evil", "context ls": "", "context nats": "evil", "context docker": "",
	"context rm": "none", "context show": "", "context use": "none", "decode": "--type Heartbeat", "stack config": "-c testdata/stack.yaml", "network connect": "a b", "network disconnect": "a b", "version": "",
	"upgrade": "--to /none", // the rest: TestUpgradeOfHostileNodes
}

// variants are flags that change what a command shows.
var variants = []string{"--json", "--no-trunc", "--pretty", "--quiet", "--verbose", "--dry-run", "--details", "--format=json", "--format={{json .}}", "--format={{.}}", "--format={{println .}}", "--format=table"}

func clean(t *testing.T, line, text string) {
	t.Helper()
	for _, l := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(l), "FORGED") || strings.Contains(l, "\tFORGED") || strings.ContainsFunc(strings.ReplaceAll(l, "\t", ""), printable.Hidden) {
			t.Errorf("skep %s prints %q", line, l)
			return
		}
	}
}

func leaves(root *cobra.Command) map[string]*cobra.Command {
	out := map[string]*cobra.Command{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, s := range c.Commands() {
			walk(s)
		}
		if path := strings.TrimPrefix(c.CommandPath(), "skep "); !c.HasSubCommands() && c.Name() != "help" && !strings.HasPrefix(path, "completion") {
			out[path] = c
		}
	}
	walk(root)
	return out
}

// TestHostileTexts: no command lets what others chose steer the terminal, or pass for a line or a cell of the command's.
func TestHostileTexts(t *testing.T) {
	tree := leaves(New(Env{Getenv: func(string) string { return "" }}))
	c := hostileCluster(t)
	shown := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(tree)) {
		args, ok := commandLines[path]
		if local, is := localCommands[path]; is {
			args, ok = local, true
		}
		if !ok {
			t.Errorf("skep %s has no line in commandLines: nobody looks at what it prints", path)
			continue
		}
		lines := [][]string{strings.Fields(path + " " + args)}
		for _, v := range variants {
			flag, _, _ := strings.Cut(strings.TrimPrefix(v, "--"), "=")
			if tree[path].Flags().Lookup(flag) != nil {
				lines = append(lines, append(strings.Fields(path), append([]string{v}, strings.Fields(args)...)...))
			}
		}
		for _, line := range lines {
			r := c.run(line...)
			if tree[path].Name() != "logs" { // a pipe gets the task's own bytes, see TestHostileLogs
				clean(t, strings.Join(line, " "), r.out)
				clean(t, strings.Join(line, " "), r.err)
			}
			shown[path] = shown[path] || strings.Contains(r.out+r.err, "FORGED")
		}
	}
	for _, path := range []string{"backup ls", "backup unknown", "backup settle", "doctor", "events", "exec", "image ls", "image pull", "image rm", "image load", "mesh ls", "mesh trace", "network inspect", "network ls", "node inspect", "node ls", "node ps", "service diff",
		"service explain", "service history", "service inspect", "service ls", "service ps", "service logs", "logs", "task inspect", "task ls", "top", "join-token", "network prune", "context issue",
		"stack ls", "stack ps", "stack services", "stack history", "stack diff", "stack deploy", "stack rm", "stack logs",
		"secret ls", "secret inspect", "secret history", "secret rm", "secret update", "secret rollback", "config ls", "config inspect", "config history", "volume create", "volume inspect", "volume ls", "volume prune", "volume claims", "volume release"} {
		if !shown[path] {
			t.Errorf("skep %s shows none of it: the test does not reach what it prints", path)
		}
	}
	// The same with every request refused.
	c.mu.Lock()
	c.on = func(proto.Message) error { return fault.Invalid("refused: %s", hostile) }
	c.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(commandLines)) {
		line := path + " " + commandLines[path]
		r := c.run(strings.Fields(line)...)
		clean(t, line, r.out)
		clean(t, line, r.err)
		if !strings.Contains(r.out+r.err, "FORGED") || strings.Count(r.err, "FORGED") > strings.Count(r.err, "\n") {
			t.Errorf("skep %s: the refusal is not told, a line for each: %q", line, r.err)
		}
	}
	// And with what was typed: the words of a script may come from elsewhere too.
	for _, line := range [][]string{{hostile}, {"service", hostile}, {"service", "ls", "--" + hostile}, {"service", "ls", "--format", hostile + "{{.X}}"}, {"service", "scale", hostile}, {"--context", hostile, "node", "ls"},
		{"service", "create", "--env", hostile, "--mount", hostile, "img"}, {"node", "ls", "--filter", hostile}} {
		r := c.run(line...)
		clean(t, strings.Join(line, " "), r.out)
		clean(t, strings.Join(line, " "), r.err)
	}
}

// TestHostileCompletion: Tab offers no name that a shell would take for more than a word.
func TestHostileCompletion(t *testing.T) {
	c := newCluster(t).withNetworks()
	c.services = []*skepv1.Service{webService()}
	c.services[0].Spec.Task.Container.Image = "img\nforged\tx\x1b[2J"
	for _, name := range []string{"w2;reboot", "$(reboot)", "`reboot`", "a b", "-rf", "w'", "w\nforged", "w\x1b[2J", "gr\u00fcn", "\u202ew"} {
		n := proto.CloneOf(c.nodes[0])
		n.Meta.Id, n.Description.Hostname = "id"+name, name
		c.nodes = append(c.nodes, n)
	}
	r := c.run("__complete", "node", "inspect", "")
	if got := strings.Fields(strings.Split(r.out, ":4")[0]); !slices.Equal(got, []string{"self", "w1", "gr\u00fcn"}) {
		t.Errorf("Tab offers %q", got)
	}
	r = c.run("__complete", "service", "inspect", "")
	clean(t, "__complete service", r.out)
	if !strings.Contains(r.out, "web\timg") || strings.Contains(r.out, "\nforged") {
		t.Errorf("Tab offers %q", r.out)
	}
}

// TestHostileLogs: a terminal gets lines it can only show, whoever wrote them; a pipe gets the task's own bytes.
func TestHostileLogs(t *testing.T) {
	c := hostileCluster(t)
	for _, x := range []struct {
		args string
		raw  bool
	}{{"logs", false}, {"logs --raw", true}, {"service logs", false}} {
		term := newTerminal(t)
		env := c.env(&safeBuffer{}, &safeBuffer{})
		env.Out, env.Err = term.tty, term.tty
		if code := Main(t.Context(), env, append(strings.Fields(x.args), "t1")); code != 0 {
			t.Fatalf("%s: status %d: %q", x.args, code, term.out.String())
		}
		_, _ = io.WriteString(term.tty, "the end")
		term.await(t, "the end")
		text := strings.ReplaceAll(strings.TrimSuffix(term.out.String(), "the end"), "\r\n", "\n") // as terminals end lines
		if x.raw {
			if !strings.Contains(text, "\x1b[31mred\x1b[0m x\x1b]0;title\a\x1b[2J") {
				t.Errorf("%s: %q", x.args, text)
			}
			continue
		}
		if !strings.Contains(text, "| red x") || strings.ContainsFunc(strings.NewReplacer("\n", "", "\t", "").Replace(text), printable.Hidden) {
			t.Errorf("%s: %q", x.args, text)
		}
		for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
			if !strings.Contains(l, "@") || !strings.Contains(l, "    | ") {
				t.Errorf("%s: a line without its task: %q", x.args, l)
			}
		}
	}
	r := c.run("logs", "t1")
	if !strings.Contains(r.out, "\x1b[31mred\x1b[0m x\x1b]0;title\a\x1b[2J\r\n") || !strings.Contains(r.out, "\u2028\x7fß節🚢\xff\r\n") {
		t.Errorf("a pipe: %q", r.out)
	}
	if r := c.run("logs", "--raw", "t1"); r.out != "\x1b[31mred\x1b[0m "+hostile+"\xff\r\n" || r.err != hostile+"\n" {
		t.Errorf("a pipe, raw: %q %q", r.out, r.err)
	}
}

// TestHostileScreen: what is painted on a terminal holds the program's codes and no others.
func TestHostileScreen(t *testing.T) {
	c := meshCluster(t).withStacks()
	c.stacks.held = func(s *skepv1.Stack) {
		s.State, s.Problems = skepv1.StackState_STACK_STATE_DEPLOYING, []*skepv1.StackProblem{{Kind: "service", Name: "shop_web", Text: hostile}}
		c.services = slices.DeleteFunc(c.services, func(s *skepv1.Service) bool { return s.Spec.Name == "shop_web" })
	}
	c.tasks[0].Status.State = pending
	c.poison = func(m proto.Message) {
		switch m.(type) {
		case *skepv1.ListTasksReply, *skepv1.ListNodesReply, *skepv1.ExplainReply:
			poison(m.ProtoReflect(), 0)
		}
	}
	codes := regexp.MustCompile(`\x1b\[(\?1049[hl]|\?25[hl]|H|J|K|2K|[0-9]+A)|\r`)
	for _, args := range []string{"top --interval 200ms", "service update --force " + webID, "service scale " + webID + "=3", "stack deploy -c testdata/stack.yaml shop"} {
		x := newTerminal(t)
		if err := pty.Setsize(x.tty, &pty.Winsize{Rows: 40, Cols: 160}); err != nil {
			t.Fatal(err)
		}
		env := c.env(&safeBuffer{}, &safeBuffer{})
		env.Out, env.Err, env.Now = x.tty, x.tty, time.Now
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan int, 1)
		go func() { done <- Main(ctx, env, strings.Fields(args)) }()
		x.await(t, "FORGED")
		cancel()
		<-done
		_, _ = io.WriteString(x.tty, "the end")
		x.await(t, "the end")
		text := x.out.String()
		if !codes.MatchString(text) {
			t.Errorf("skep %s paints nothing: %q", args, text)
		}
		clean(t, args, codes.ReplaceAllString(text, ""))
	}
}

// TestHostileContexts: what a file says that another made.
func TestHostileContexts(t *testing.T) {
	c := newCluster(t)
	var out, errs safeBuffer
	env := c.env(&out, &errs)
	dir := filepath.Join(env.Getenv("SKEP_CONFIG_DIR"), "contexts")
	text, err := json.Marshal(map[string]any{"addr": hostile, "description": hostile, "others": []string{hostile}})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "evil.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"context ls", "context ls --format {{.Description}}", "context inspect evil", "context inspect --format {{.Addr}}{{.Others}} evil", "context export -o - evil", "context use evil", "context show"} {
		Main(t.Context(), env, strings.Fields(line))
	}
	clean(t, "context", out.String())
	clean(t, "context", errs.String())
	if n := strings.Count(out.String(), "FORGED"); n < 8 {
		t.Errorf("it is shown %d times: %q", n, out.String())
	}
}

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

// fakeStacks keeps stacks for a fake cluster: what is asked for is so at once.
type fakeStacks struct {
	list  []*skepv1.Stack
	revs  map[string][]*skepv1.StackRevision // by name, newest first
	stays bool                               // nothing is ever removed
	// held, if set, changes a stack after each change of it.
	held func(*skepv1.Stack)
}

func stackID(name string) string { return ("stack" + name + strings.Repeat("0", 25))[:25] }

func (f *fakeStacks) find(ref string) (*skepv1.Stack, error) {
	for _, s := range f.list {
		if s.Name == ref || s.Meta.Id == ref {
			return s, nil
		}
	}
	return nil, fault.NotFound("no such stack: %s", ref)
}

// withStacks adds secrets and stacks to a cluster, and the stack shop with revisions 1 and 2.
func (c *cluster) withStacks() *cluster {
	c.t.Helper()
	if c.vault == nil {
		c.withSecrets()
	}
	f := &fakeStacks{revs: map[string][]*skepv1.StackRevision{}}
	c.stacks = f
	serve(c, c.rs, api.StackDeploy, func(r *skepv1.DeployStackRequest) (*skepv1.DeployStackReply, error) {
		return f.deploy(c, r, "root", "local")
	})
	serve(c, c.rs, api.StackRollback, func(r *skepv1.RollbackStackRequest) (*skepv1.DeployStackReply, error) {
		s, err := f.find(r.Ref)
		if err != nil {
			return nil, err
		}
		to := r.Revision
		if to == 0 {
			to = s.Revision - 1
		}
		for _, rev := range f.revs[s.Name] {
			if rev.Number == to {
				return f.deploy(c, &skepv1.DeployStackRequest{Spec: rev.Spec, ExpectRevision: s.Revision, DryRun: r.DryRun}, "root", "local")
			}
		}
		return nil, fault.NotFound("stack %s has no revision %d", s.Name, to)
	})
	serve(c, c.rs, api.StackRemove, func(r *skepv1.RemoveStackRequest) (*skepv1.StackReply, error) {
		s, err := f.find(r.Ref)
		if err != nil {
			return nil, err
		}
		if !f.stays {
			f.list = slices.DeleteFunc(f.list, func(x *skepv1.Stack) bool { return x == s })
			c.services, c.tasks = nil, nil
		}
		return &skepv1.StackReply{Stack: s}, nil
	})
	serve(c, c.rs, api.StackInspect, func(r *skepv1.Ref) (*skepv1.StackReply, error) {
		s, err := f.find(r.Ref)
		return &skepv1.StackReply{Stack: s}, err
	})
	serve(c, c.rs, api.StackList, func(*skepv1.ListStacksRequest) (*skepv1.ListStacksReply, error) {
		return &skepv1.ListStacksReply{Stacks: f.list}, nil
	})
	serve(c, c.rs, api.StackRevisions, func(r *skepv1.ListStackRevisionsRequest) (*skepv1.ListStackRevisionsReply, error) {
		s, err := f.find(r.Ref)
		return &skepv1.ListStackRevisionsReply{Revisions: f.revs[s.GetName()]}, err
	})
	c.flush()
	return c
}

func (f *fakeStacks) deploy(c *cluster, r *skepv1.DeployStackRequest, author, address string) (*skepv1.DeployStackReply, error) {
	name := r.Spec.Name
	s, err := f.find(name)
	if err != nil {
		s = &skepv1.Stack{Meta: &skepv1.Meta{Id: stackID(name)}, Name: name, Spec: &skepv1.StackSpec{}}
	}
	if s.Revision != r.ExpectRevision {
		return nil, fault.New(fault.CodeSequence, "stack %s is at revision %d, not %d", name, s.Revision, r.ExpectRevision)
	}
	out := &skepv1.DeployStackReply{}
	was := map[string]*skepv1.ServiceSpec{}
	for _, v := range s.Spec.Services {
		was[v.Name] = v
	}
	note := func(kind, name string, there bool, fields []string) {
		x := &skepv1.StackChange{Kind: kind, Name: name, Verb: skepv1.StackChange_VERB_CREATE, Fields: fields}
		if there {
			x.Verb, x.Fields = skepv1.StackChange_VERB_KEEP, nil
			if len(fields) > 0 {
				x.Verb, x.Fields = skepv1.StackChange_VERB_CHANGE, fields
			}
		}
		out.Changes = append(out.Changes, x)
	}
	for _, l := range []struct {
		kind      string
		now, were []*skepv1.StackFile
	}{{"secret", r.Spec.Secrets, s.Spec.Secrets}, {"config", r.Spec.Configs, s.Spec.Configs}} {
		for _, v := range l.now {
			var fields []string
			for _, w := range l.were {
				if w.Name == v.Name && w.Version != v.Version {
					fields = append(fields, fmt.Sprintf("version %d -> %d", w.Version, v.Version))
				}
			}
			note(l.kind, v.Name, slices.ContainsFunc(l.were, func(w *skepv1.StackFile) bool { return w.Name == v.Name }), fields)
		}
	}
	for _, v := range r.Spec.Services {
		w := was[v.Name]
		var fields []string
		if w != nil {
			fields = spec.Changes(w, v)
		}
		note("service", v.Name, w != nil, fields)
	}
	if r.DryRun {
		out.Stack = proto.CloneOf(s)
		return out, nil
	}
	for _, x := range out.Changes {
		if x.Verb != skepv1.StackChange_VERB_KEEP {
			s.Revision++
			break
		}
	}
	s.State, s.Spec, s.Author, s.AuthorAddress = skepv1.StackState_STACK_STATE_DEPLOYED, proto.CloneOf(r.Spec), author, address
	s.Meta.UpdatedAt = timestamppb.New(testNow.Add(-time.Minute))
	s.Members = nil
	if len(f.revs[name]) == 0 || f.revs[name][0].Number < s.Revision {
		rev := &skepv1.StackRevision{StackId: s.Meta.Id, Number: s.Revision, Spec: proto.CloneOf(r.Spec), CreatedAt: timestamppb.New(testNow.Add(-time.Minute)), Author: author, Summary: "what changed"}
		f.revs[name] = append([]*skepv1.StackRevision{rev}, f.revs[name]...)
	}
	for _, x := range out.Changes {
		id := "id" + x.Name
		s.Members = append(s.Members, &skepv1.StackMember{Kind: x.Kind, Id: id, Name: x.Name})
		if x.Kind != "service" || x.Verb == skepv1.StackChange_VERB_KEEP {
			continue
		}
		at := slices.IndexFunc(r.Spec.Services, func(v *skepv1.ServiceSpec) bool { return v.Name == x.Name })
		c.services = slices.DeleteFunc(c.services, func(v *skepv1.Service) bool { return v.Spec.Name == x.Name })
		v := &skepv1.Service{Meta: &skepv1.Meta{Id: id}, Revision: s.Revision, Spec: proto.CloneOf(r.Spec.Services[at]), Status: &skepv1.ServiceStatus{Running: 1, Desired: 1}}
		c.services = append(c.services, v)
		c.tasks = slices.DeleteFunc(c.tasks, func(t *skepv1.Task) bool { return t.ServiceId == id })
		t := webTask(fmt.Sprintf("t%d%s", s.Revision, x.Name), 1, running)
		t.ServiceId, t.ServiceName, t.Name, t.Image, t.Revision = id, x.Name, x.Name+".1", v.Spec.Task.Container.Image, s.Revision
		c.tasks = append(c.tasks, t)
	}
	if _, err := f.find(name); err != nil {
		f.list = append(f.list, s)
	}
	if f.held != nil {
		f.held(s)
	}
	out.Stack = proto.CloneOf(s)
	return out, nil
}

// composeFile is a stack of two services, a secret and a config.
const composeFile = `services:
  web:
    image: %s
    environment:
      COLOUR: red
    configs: [page]
    depends_on: [db]
  db:
    image: mariadb:11
    secrets: [pw]
configs:
  page:
    content: %s
secrets:
  pw:
    environment: SHOP_PASSWORD
`

// file writes a compose file and returns its path.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStackSession(t *testing.T) {
	c := newCluster(t).withStacks()
	t.Setenv("SHOP_PASSWORD", "geheim")
	one, two := file(t, fmt.Sprintf(composeFile, "httpd:2", "hello")), file(t, fmt.Sprintf(composeFile, "httpd:3", "hi"))
	text := session(c,
		"stack ls", "stack deploy --dry-run -c "+one+" shop", "stack deploy -d -c "+one+" shop", "stack deploy -d -c "+one+" shop", "stack deploy -q -c "+one+" shop",
		"stack diff -c "+one+" shop", "stack diff -c "+two+" shop", "stack up -d -c "+two+" shop", "stack ls", "stack ls -q", "stack ls --format json", "stack ls --format {{.Name}}:{{.Revision}}:{{.State}}:{{.Author}}",
		"stack ps shop", "stack ps -q shop", "stack ps --format {{.Name}} shop", "stack services shop", "stack services -q shop", "stack history shop", "stack diff shop", "stack diff --from 1 --to 9 shop",
		"stack rollback --dry-run shop", "stack rollback -d --to 1 shop", "stack rollback --to 9 shop", "stack rollback --to 0 shop", "stack history -q shop",
		"stack deploy shop", "stack deploy -c /no/such/file shop", "stack deploy -c "+one+" a.b", "stack deploy --resolve-image sometimes -c "+one+" shop", "stack diff -c "+one+" --from 1 shop",
		"stack ps nope", "stack services nope", "stack logs nope", "stack rm nope", "stack rm -d shop", "stack ls",
	)
	for i, path := range []string{one, two} {
		text = strings.ReplaceAll(text, path, fmt.Sprintf("%d.yaml", i+1))
	}
	golden.Check(t, "stack", text)
}

// deployed is a cluster that has the stack shop already, and the file it is from.
func deployedShop(t *testing.T) (*cluster, string) {
	t.Helper()
	c := newCluster(t).withStacks()
	t.Setenv("SHOP_PASSWORD", "geheim")
	one := file(t, fmt.Sprintf(composeFile, "httpd:2", "hello"))
	want(t, c.run("stack", "deploy", "-d", "-c", one, "shop"), 0, "create service shop_web", "")
	return c, one
}

// asked counts the requests of a type that were made.
func asked[M proto.Message](c *cluster, which func(M) bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, r := range c.calls {
		if m, is := r.(M); is && which(m) {
			n++
		}
	}
	return n
}

// TestStackValues: values reach the vault sealed, as what they are, and only where they differ.
func TestStackValues(t *testing.T) {
	c, one := deployedShop(t)
	if c.stored("shop_pw") != "geheim" || c.stored("shop_page") != "hello" {
		t.Errorf("stored %q and %q", c.stored("shop_pw"), c.stored("shop_page"))
	}
	for _, o := range c.vault.objects {
		if strings.HasPrefix(o.Spec.Name, "shop_") && o.Spec.Labels[stackLabel] != "shop" {
			t.Errorf("%s has labels %v", o.Spec.Name, o.Spec.Labels)
		}
	}
	writes := func() int {
		return asked(c, func(*skepv1.CreateSecretRequest) bool { return true }) + asked(c, func(r *skepv1.UpdateSecretRequest) bool { return !r.DryRun })
	}
	before := writes()
	want(t, c.run("stack", "deploy", "-c", one, "shop"), 0, "unchanged", "")
	if n := writes() - before; n != 0 {
		t.Errorf("the same again wrote %d values", n)
	}
	two := file(t, fmt.Sprintf(composeFile, "httpd:2", "hi"))
	want(t, c.run("stack", "deploy", "--dry-run", "-c", two, "shop"), 0, "change config  shop_page", "")
	if n := writes() - before; n != 0 || c.stored("shop_page") != "hello" {
		t.Errorf("a dry run wrote %d values", n)
	}
	want(t, c.run("stack", "deploy", "-d", "-c", two, "shop"), 0, "version 1 -> 2", "")
	if n := writes() - before; n != 1 || c.stored("shop_page") != "hi" {
		t.Errorf("%d values written, %q", n, c.stored("shop_page"))
	}
	if r := sent[*skepv1.UpdateSecretRequest](c); !r.Hold || !r.IfChanged {
		t.Errorf("sent %v", r)
	}
	for _, s := range sent[*skepv1.DeployStackRequest](c).Spec.Secrets {
		if s.Id == "" || s.Version != 1 {
			t.Errorf("deployed with %v", s)
		}
	}
}

// TestStackRefusals: nothing is changed when something is wrong.
func TestStackRefusals(t *testing.T) {
	c := newCluster(t).withStacks()
	t.Setenv("SHOP_PASSWORD", "geheim")
	one := file(t, fmt.Sprintf(composeFile, "httpd:2", "hello"))
	secretOf := func(labels map[string]string) {
		s := &skepv1.Secret{Meta: &skepv1.Meta{Id: stackID("pw")}, Kind: skepv1.SecretKind_SECRET_KIND_SECRET, Spec: &skepv1.SecretSpec{Name: "shop_pw", Labels: labels}}
		c.vault.add(s, []byte("x"))
		c.vault.objects = append(c.vault.objects[:3:3], s)
	}
	secretOf(nil)
	want(t, c.run("stack", "deploy", "-c", one, "shop"), 1, "", "secret shop_pw exists already and is not of stack shop (it was made by hand)")
	secretOf(map[string]string{stackLabel: "other"})
	want(t, c.run("stack", "deploy", "-c", one, "shop"), 1, "", "it is of stack other")
	c.vault.objects = c.vault.objects[:3]
	external := file(t, "services:\n  web:\n    image: httpd\n    secrets: [tls, none]\n    networks: [gone]\nsecrets:\n  tls: {external: true}\n  none: {external: true}\nnetworks:\n  gone: {external: true}\n")
	r := c.run("stack", "deploy", "-c", external, "shop")
	want(t, r, 1, "", "compose.yaml:8:")
	want(t, r, 1, "", "secret none is external and does not exist: make it with `skep secret create none`")
	want(t, r, 1, "", "network gone is external and does not exist")
	if strings.Contains(r.err, "tls") {
		t.Error(r.err)
	}
	for _, name := range []string{"", " ", `""`} {
		for _, args := range [][]string{{"deploy", "--prune", "-c", one, name}, {"rm", "shop", name}, {"rollback", name}, {"ps", name}, {"diff", name}} {
			want(t, c.run(append([]string{"stack"}, args...)...), 2, "", "invalid stack name")
		}
	}
	want(t, c.run("stack", "deploy", "-c", file(t, "services:\n  web: [\n"), "shop"), 2, "", "compose.yaml:")
	if n := asked(c, func(r *skepv1.DeployStackRequest) bool { return !r.DryRun }) + asked(c, func(*skepv1.CreateSecretRequest) bool { return true }) + asked(c, func(*skepv1.RemoveStackRequest) bool { return true }); n != 0 {
		t.Errorf("%d changes were asked for", n)
	}
}

// TestStackConflict: whoever was slower is told who was quicker, and leaves nothing behind.
func TestStackConflict(t *testing.T) {
	c, _ := deployedShop(t)
	two := file(t, fmt.Sprintf(composeFile, "httpd:3", "hi")+"  more:\n    environment: SHOP_PASSWORD\n")
	c.on = func(r proto.Message) error {
		if d, is := r.(*skepv1.DeployStackRequest); is && !d.DryRun {
			c.on = nil
			s := c.stacks.list[0]
			s.Revision, s.Author, s.AuthorAddress, s.Meta.UpdatedAt = 2, "alice", "10.0.0.9", timestamppb.New(time.Now().Add(-65*time.Second))
		}
		return nil
	}
	r := c.run("stack", "deploy", "-c", two, "shop")
	want(t, r, 1, "", "stack shop is at revision 2 meanwhile: alice (10.0.0.9) deployed it about a minute ago, and this deploy was made over revision 1")
	want(t, r, 1, "", "`skep stack diff shop`")
	if c.stored("shop_more") != "none" {
		t.Error("what was made for the refused deploy is left")
	}
}

func TestStackOutcomes(t *testing.T) {
	for _, x := range []struct {
		state string
		code  int
		errs  []string
	}{
		{"rollback_completed", 3, []string{"shop_web: service rolled back: task x failed", "stack shop, revision 2: 1 of 2 services failed"}},
		{"paused", 1, []string{"shop_web: service update paused: task x failed", "skep service update --resume shop_web"}},
	} {
		c, _ := deployedShop(t)
		two := file(t, fmt.Sprintf(composeFile, "httpd:3", "hello"))
		c.looked = func(int) {
			for _, s := range c.services {
				if s.Spec.Name == "shop_web" {
					s.UpdateStatus = &skepv1.UpdateStatus{State: x.state, Message: "task x failed", StartedAt: timestamppb.Now()}
				}
			}
		}
		r := c.run("stack", "deploy", "-c", two, "shop")
		for _, text := range x.errs {
			want(t, r, x.code, "change service shop_web", text)
		}
	}
}

// TestStackInterrupted: the deploy goes on without who asked for it.
func TestStackInterrupted(t *testing.T) {
	c, one := deployedShop(t)
	c.stacks.list[0].State = skepv1.StackState_STACK_STATE_DEPLOYING
	c.stacks.held = func(s *skepv1.Stack) { s.State = skepv1.StackState_STACK_STATE_DEPLOYING }
	ctx, cancel := context.WithCancel(t.Context())
	c.looked = func(n int) {
		if n == 2 {
			cancel()
		}
	}
	want(t, c.runCtx(ctx, "stack", "deploy", "-c", one, "shop"), 130, "", "The deploy of stack shop, revision 1, goes on in the background.")
	want(t, c.run("stack", "deploy", "--timeout", "200ms", "-c", one, "shop"), 4, "", "timed out after 200ms")
	// What it lacks is told.
	c.mu.Lock()
	c.services, c.stacks.list[0].Problems = c.services[:1], []*skepv1.StackProblem{{Kind: "service", Name: "shop_web", Text: "port 80 is taken"}}
	c.mu.Unlock()
	r := c.run("stack", "ps", "shop")
	want(t, r, 0, "shop_db.1", "Missing: service shop_web of revision 1 is not there yet.")
	want(t, r, 0, "shop_db.1", "Problem: service shop_web: port 80 is taken")
	want(t, c.run("stack", "ls"), 0, "deploying, with problems", "")
}

// TestStackRemoved: rm waits for the tasks, and a deploy for a removal under way.
func TestStackRemoved(t *testing.T) {
	c, _ := deployedShop(t)
	want(t, c.run("stack", "rm", "shop"), 0, "shop\n", "Removing service shop_web")
	c, one := deployedShop(t)
	c.stacks.list[0].State = skepv1.StackState_STACK_STATE_REMOVING
	c.looked = func(n int) {
		if n == 3 {
			c.stacks.list, c.services, c.tasks = nil, nil, nil
		}
	}
	want(t, c.run("stack", "deploy", "-c", one, "shop"), 0, "create service shop_web", "Stack shop is being removed: waiting until it is gone.")
}

// TestStackJSON: the plan and the stack as one document, and nothing else on standard output.
func TestStackJSON(t *testing.T) {
	c, one := deployedShop(t)
	for _, args := range []string{"stack deploy --json -c " + one + " shop", "stack deploy --json --dry-run -c " + one + " shop", "stack rollback --json --dry-run --to 1 shop", "stack ls --json", "stack history --json shop", "stack ps --json shop", "stack services --json shop"} {
		r := c.run(strings.Fields(args)...)
		if r.code != 0 || !json.Valid([]byte(r.out)) {
			t.Errorf("%s: %d %s %s", args, r.code, r.out, r.err)
		}
	}
}

func TestStackCompletion(t *testing.T) {
	c, _ := deployedShop(t)
	for _, cmd := range []string{"rm", "ps", "deploy", "services", "logs", "history", "diff", "rollback"} {
		if r := c.run("__complete", "stack", cmd, ""); !strings.HasPrefix(r.out, "shop\tdeployed\n") {
			t.Errorf("completing skep stack %s: %q", cmd, r.out)
		}
	}
	if r := c.run("__complete", "stack", "deploy", "--resolve-image", ""); !strings.Contains(r.out, "changed") {
		t.Errorf("--resolve-image: %q", r.out)
	}
}

// TestStackFromPipe: -c <(command), as shells write it.
func TestStackFromPipe(t *testing.T) {
	c := newCluster(t).withStacks()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := w.WriteString("services:\n  web:\n    image: busybox:1\n"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	want(t, c.run("stack", "deploy", "-d", "-c", fmt.Sprintf("/dev/fd/%d", r.Fd()), "piped"), 0, "create service piped_web", "")
}

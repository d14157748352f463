package cases

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// shopFile is a stack with one of everything: db has a secret and a volume, api waits for it to be healthy, shows a config
// and is published, worker has nothing in common with them but the network.
const shopFile = `services:
  db:
    image: busybox
    command: ["sh", "-c", "cat /run/secrets/pw >/data/pw && touch /data/ready && exec sleep 100000"]
    stop_signal: SIGKILL
    secrets: [pw]
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "test", "-f", "/data/ready"], interval: 1s}
  api:
    image: IMAGE
    command: COMMAND
    stop_signal: SIGKILL
    configs: [{source: page, target: /www/index.html}]
    ports: ["8080:80"]
    networks: [front]
    depends_on: {db: {condition: service_healthy}}
    deploy:
      replicas: 2
      update_config: {failure_action: rollback, monitor: 2s, parallelism: 0}
  worker:
    image: busybox
    command: ["sleep", "100000"]
    stop_signal: SIGKILL
    environment: {COLOUR: red}
    networks: [front, default]
    deploy: {update_config: {monitor: 1s}}
networks:
  front: {attachable: true}
volumes:
  data: {}
secrets:
  pw: {file: ./pw.txt}
configs:
  page: {file: ./page.html}
`

const httpd = `["httpd", "-f", "-p", "80", "-h", "/www"]`

// stackFile writes a compose file, and beside it its secret and config, on m1.
func (c *cluster) stackFile(change ...string) {
	c.t.Helper()
	text := strings.NewReplacer(append(change, "IMAGE", "busybox", "COMMAND", httpd)...).Replace(shopFile)
	c.write("/srv/shop/compose.yaml", text)
}

func (c *cluster) write(path, text string) {
	c.t.Helper()
	r, err := c.RunInput(c.ctx, "m1", text, "sh", "-c", "mkdir -p $(dirname "+path+"); cat >"+path)
	if err != nil || r.Code != 0 {
		c.t.Fatalf("write %s: %v %s", path, err, r.Stderr)
	}
}

// stackTasks are the ids of a stack's running tasks, by service.
func (c *cluster) stackTasks(stack string) map[string][]string {
	c.t.Helper()
	out := map[string][]string{}
	for _, line := range strings.Split(c.skep("stack", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", "{{.ID}}\t{{.Name}}", stack), "\n") {
		if id, name, ok := strings.Cut(line, "\t"); ok {
			service := name[:strings.LastIndexByte(name, '.')]
			out[service] = append(out[service], id)
		}
	}
	for _, ids := range out {
		slices.Sort(ids)
	}
	return out
}

// touched are the services whose tasks are not those of before.
func touched(before, after map[string][]string) []string {
	var out []string
	for service, ids := range before {
		if !slices.Equal(ids, after[service]) {
			out = append(out, service)
		}
	}
	slices.Sort(out)
	return out
}

// TestStack: one file becomes a stack; the same again touches nothing, a change what it concerns and nothing else; what
// fails is rolled back and named; nothing is left when it goes.
func TestStack(t *testing.T) {
	c := up(t, lab.Options{Race: true})
	deploy := []string{"stack", "deploy", "-c", "/srv/shop/compose.yaml", "shop"}
	page := func(want string) {
		t.Helper()
		c.await("the page", 10*time.Second, func() string {
			if r := c.on("client", "curl", "-s", "-m", "2", "http://"+fabric["w1"]+":8080/"); r.Stdout != want {
				return fmt.Sprintf("%q, want %q", r.Stdout, want)
			}
			return ""
		})
	}
	c.stackFile()
	c.write("/srv/shop/page.html", "one")
	c.write("/srv/shop/pw.txt", "geheim")

	// What is wrong is said before anything is made.
	c.refused(2, []string{"stack name"}, "stack", "deploy", "-c", "/srv/shop/compose.yaml", "")
	c.refused(2, []string{"stack name"}, "stack", "rm", " ")
	c.refused(2, []string{"no such file"}, "stack", "deploy", "-c", "/srv/none.yaml", "shop")
	if out := c.skep("stack", "deploy", "--dry-run", "-c", "/srv/shop/compose.yaml", "shop"); !strings.Contains(out, "create service shop_api") {
		t.Errorf("the plan:\n%s", out)
	}
	if out := c.skep("stack", "ls", "-q") + c.skep("service", "ls", "-q") + c.skep("secret", "ls", "-q"); out != "" {
		t.Fatalf("a dry run made %s", out)
	}

	out := c.skep(deploy...)
	for _, line := range []string{"create network shop_default", "create network shop_front", "create secret  shop_pw", "create config  shop_page", "create service shop_db"} {
		if !strings.Contains(out, line) {
			t.Errorf("the plan lacks %q:\n%s", line, out)
		}
	}
	page("one")
	if got := c.skep("stack", "services", "--format", "{{.Name}} {{.Replicas}}", "shop"); got != "shop_api 2/2\nshop_db 1/1\nshop_worker 1/1" {
		t.Errorf("services:\n%s", got)
	}
	if got := c.skep("stack", "ls", "--format", "{{.Name}} {{.Services}}"); got != "shop 3" {
		t.Errorf("ls: %s", got)
	}

	// The same again.
	before := c.stackTasks("shop")
	began := time.Now()
	if out := c.skep(deploy...); !strings.Contains(out, "unchanged") {
		t.Errorf("the same again: %s", out)
	}
	t.Logf("the same again: %.2f s", time.Since(began).Seconds())
	if list := touched(before, c.stackTasks("shop")); len(list) > 0 {
		t.Errorf("it touched %v", list)
	}

	// One service's environment, a config's content.
	c.stackFile("red", "green")
	c.skep(deploy...)
	after := c.stackTasks("shop")
	if list := touched(before, after); !slices.Equal(list, []string{"shop_worker"}) {
		t.Errorf("another environment touched %v", list)
	}
	before = after
	c.write("/srv/shop/page.html", "two")
	if out := c.skep("stack", "diff", "-c", "/srv/shop/compose.yaml", "shop"); !strings.Contains(out, "shop_page") || !strings.Contains(out, "shop_api") || strings.Contains(out, "shop_db") {
		t.Errorf("diff:\n%s", out)
	}
	c.skep(deploy...)
	page("two")
	after = c.stackTasks("shop")
	if list := touched(before, after); !slices.Equal(list, []string{"shop_api"}) {
		t.Errorf("another page touched %v", list)
	}

	// What fails is rolled back and named.
	c.stackFile("red", "green", "COMMAND", `["false"]`)
	c.refused(3, []string{"shop_api", "rolled back", "1 of 3 services failed"}, deploy...)
	page("two")

	// And back, the whole stack.
	c.stackFile("red", "green")
	c.skep(deploy...)
	c.skep("stack", "rollback", "--to", "1", "shop")
	page("one")
	if out := c.skep("stack", "history", "--format", "{{.Revision}}", "shop"); len(strings.Fields(out)) < 5 {
		t.Errorf("history: %s", out)
	}

	c.skep("stack", "rm", "shop")
	c.gone("shop")
}

// gone: nothing of a stack is left, neither objects nor what its tasks left behind.
func (c *cluster) gone(stack string) {
	c.t.Helper()
	label := "label=com.docker.stack.namespace=" + stack
	for _, list := range [][]string{{"stack", "ls", "-q"}, {"service", "ls", "-q", "--filter", label}, {"network", "ls", "-q", "--filter", label}, {"secret", "ls", "-q", "--filter", label}, {"config", "ls", "-q", "--filter", label}} {
		if out := c.skep(list...); out != "" {
			c.t.Errorf("skep %s: %s", strings.Join(list, " "), out)
		}
	}
	c.awaitClean(20*time.Second, c.members()...)
}

// TestStackInterrupted: a deploy goes on without who asked for it; a removal in the middle of one leaves nothing; of two
// people one is refused.
func TestStackInterrupted(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Race: true})
	c.stackFile()
	c.write("/srv/shop/page.html", "one")
	c.write("/srv/shop/pw.txt", "geheim")

	// Killed as soon as the cluster knows of the stack: api still waits for db to be healthy.
	c.on("m1", "sh", "-c", `skep stack deploy -c /srv/shop/compose.yaml shop >/srv/out 2>&1 & pid=$!
for i in $(seq 200); do [ -n "$(skep stack ls -q)" ] && break; sleep 0.05; done; kill -9 $pid; wait $pid`)
	for service, n := range map[string]int{"shop_db": 1, "shop_worker": 1, "shop_api": 2} {
		c.await(service+" is there", 30*time.Second, func() string {
			return c.on("m1", "skep", "service", "inspect", "--format", "{{.ID}}", service).Stderr
		})
		c.awaitRunning(service, n, 30*time.Second)
	}
	if out := c.skep("stack", "deploy", "-c", "/srv/shop/compose.yaml", "shop"); !strings.Contains(out, "unchanged") {
		t.Errorf("after the killed deploy: %s", out)
	}

	// Removed in the middle.
	c.skep("stack", "rm", "shop")
	c.gone("shop")
	c.skep("stack", "deploy", "-d", "-c", "/srv/shop/compose.yaml", "shop")
	c.skep("stack", "rm", "shop")
	c.gone("shop")
	// This one never ends by itself, however slow the removal comes: db is not healthy before it starts for good.
	c.stackFile(`"-f", "/data/ready"], interval: 1s`, `"-f", "/data/never"], interval: 1s, start_period: 10m`)
	r := c.on("m1", "sh", "-c", `skep stack deploy -c /srv/shop/compose.yaml shop >/srv/out 2>&1 & pid=$!
for i in $(seq 200); do [ -n "$(skep stack ls -q)" ] && break; sleep 0.05; done; skep stack rm shop; wait $pid; echo "exit $?"; cat /srv/out`)
	if !strings.Contains(r.Stdout, "exit 1") || !strings.Contains(r.Stdout, "removed meanwhile") {
		t.Errorf("the deploy that was removed under way: %s%s", r.Stdout, r.Stderr)
	}
	c.gone("shop")
	c.stackFile()

	// Two at once: both commands end, one revision after the other or one of them refused, and never a mix.
	c.skep("stack", "deploy", "-q", "-c", "/srv/shop/compose.yaml", "shop")
	for _, colour := range []string{"blue", "white"} {
		c.write("/srv/shop/"+colour+".yaml", strings.NewReplacer("IMAGE", "busybox", "COMMAND", httpd, "red", colour, "replicas: 2", "replicas: "+fmt.Sprint(len(colour)-3)).Replace(shopFile))
	}
	r = c.on("m1", "sh", "-c", `for f in blue white; do (skep stack deploy -q -c /srv/shop/$f.yaml shop 2>/srv/err.$f; echo "$f $?") & done; wait; cat /srv/err.*`)
	colour := c.skep("service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "shop_worker")
	replicas := c.skep("service", "inspect", "--format", "{{.Spec.Mode.Replicated.Replicas}}", "shop_api")
	switch {
	case colour == "[COLOUR=blue]" && replicas == "1", colour == "[COLOUR=white]" && replicas == "2":
	default:
		t.Errorf("a mix: %s with %s replicas\n%s", colour, replicas, r.Stdout)
	}
	if !strings.Contains(r.Stdout, " 0") {
		t.Errorf("none of two deploys was done: %s", r.Stdout)
	}
	t.Logf("two at once: %s", r.Stdout)
	c.skep("stack", "rm", "shop")
	c.gone("shop")
}

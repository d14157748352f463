package cases

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"skep.dev/e2e/lab"
)

// docker runs the docker command on m1 through the context that skep named, and returns what it printed.
func (c *cluster) docker(args ...string) string {
	c.t.Helper()
	r := c.on("m1", append([]string{"docker", "--context", "skep"}, args...)...)
	if r.Code != 0 {
		c.t.Fatalf("docker %s: exit status %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

func (c *cluster) dockerRefused(want string, args ...string) {
	c.t.Helper()
	c.refusedOn("m1", 1, []string{want}, append([]string{"docker", "--context", "skep"}, args...)...)
}

// holds wants each of the words in a text.
func holds(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s: no %q in\n%s", what, w, text)
		}
	}
}

// The docker command as it comes, on a cluster of three: what a user of Docker Swarm types, with what it prints there.
func TestDockerCommand(t *testing.T) {
	t.Parallel()
	c := up(t, lab.Options{Hosts: 3, Race: true})
	if r := c.on("m1", "sh", "-c", "export DOCKER_CONFIG=$HOME/.docker; $(skep context docker)"); r.Code != 0 {
		t.Fatalf("%s%s", r.Stdout, r.Stderr)
	}

	// Who it talks to.
	holds(t, "version", c.docker("version"), "Server: skep", "API version:      1.56 (minimum version 1.24)")
	holds(t, "info", c.docker("info"), "Swarm: active", "Is Manager: true", "Nodes: 3", "Managers: 1", "Name: m1")
	if self := c.docker("info", "-f", "{{.Swarm.NodeID}}"); c.docker("node", "inspect", "self", "-f", "{{.ID}} {{.Description.Hostname}}") != self+" m1" {
		t.Error("self is another node")
	}
	if got, want := c.docker("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}"), c.skep("node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}"); got != want {
		t.Errorf("docker node ls:\n%s\nskep:\n%s", got, want)
	}
	worker := func(want string, args ...string) {
		t.Helper()
		c.refusedOn("w1", 1, []string{want}, append([]string{"docker", "-H", "unix:///run/skep/docker.sock"}, args...)...)
	}
	worker("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state.", "node", "ls")
	worker("This node is not a swarm manager.", "service", "create", "whoami:v1")

	// A service from its beginning to its end. docker waits five seconds each time, to see that it stays.
	if id := strings.Fields(c.docker("service", "create", "-q", "--name", "web", "--replicas", "2", "--publish", "8080:80", "--label", "app=web", "whoami:v1"))[0]; len(id) != 25 {
		t.Errorf("id %q", id)
	}
	if got := c.docker("service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}"); got != "web replicated 2/2 whoami:v1 *:8080->80/tcp" {
		t.Errorf("service ls: %s", got)
	}
	if got := c.docker("service", "ps", "--filter", "desired-state=running", "--format", "{{.Name}} {{.Image}} {{.DesiredState}}", "web"); got != "web.1 whoami:v1 Running\nweb.2 whoami:v1 Running" {
		t.Errorf("service ps: %s", got)
	}
	holds(t, "service inspect", c.docker("service", "inspect", "--pretty", "web"), "Service Mode:\tReplicated", " Replicas:\t2", "whoami:v1@sha256:", "PublishedPort = 8080", "Update order:      stop-first")
	a, err := c.ask("w1", "http://127.0.0.1:8080/")
	if err != nil || a.version != "v1" {
		t.Errorf("the published port: %+v %v", a, err)
	}
	c.docker("service", "scale", "-d", "web=3")
	c.awaitRunning("web", 3, time.Minute)
	c.docker("service", "update", "-q", "--image", "whoami:v2", "--env-add", "A=b", "web")
	if got := c.docker("service", "inspect", "-f", "{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Env}} {{.PreviousSpec.TaskTemplate.ContainerSpec.Env}}", "web"); got != "completed [A=b] []" {
		t.Errorf("after an update: %s", got)
	}
	c.docker("service", "rollback", "-q", "web")
	if got := c.docker("service", "inspect", "-f", "{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Env}} {{.Spec.Mode.Replicated.Replicas}}", "web"); got != "rollback_completed [] 3" {
		t.Errorf("after a rollback: %s", got)
	}
	for _, task := range c.tasks("web") {
		holds(t, "service logs", c.docker("service", "logs", "web"), task.Name+"."+task.ID[:12]+"@"+task.Node, "| whoami v2 on ")
	}
	holds(t, "service logs of a task", c.docker("service", "logs", "--timestamps", "--details", c.tasks("web")[0].ID), "| ", "whoami v1 on ")

	// What is refused is refused in Docker's words.
	c.dockerRefused("rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists", "service", "create", "-d", "--name", "web", "whoami:v1")
	c.dockerRefused("port '8080' is already in use by service 'web'", "service", "create", "-d", "--publish", "8080:80", "whoami:v1")
	c.dockerRefused("no such service: nothing", "service", "ps", "nothing")
	c.dockerRefused("service nothing not found", "service", "rm", "nothing")
	c.dockerRefused("invalid filter 'colour'", "service", "ls", "--filter", "colour=red")
	c.dockerRefused("skep runs services, not single containers", "create", "whoami:v1")
	c.dockerRefused("No such object: nothing", "inspect", "nothing")

	// Secrets, configs and networks.
	pipe := func(value, cmd string) string {
		t.Helper()
		r := c.on("m1", "sh", "-c", "printf '"+value+"' | docker --context skep "+cmd)
		if r.Code != 0 {
			t.Fatalf("%s: %s", cmd, r.Stderr)
		}
		return strings.TrimSpace(r.Stdout)
	}
	pipe("hidden", "secret create -l a=b pw -")
	pipe("shown", "config create cf -")
	if got := c.docker("secret", "inspect", "pw"); strings.Contains(got, "Data") || strings.Contains(got, "aGlkZGVu") {
		t.Errorf("the secret is told: %s", got)
	}
	holds(t, "config inspect", c.docker("config", "inspect", "--pretty", "cf"), "Data:\nshown")
	c.docker("network", "create", "-d", "overlay", "--attachable", "back")
	c.docker("service", "create", "-q", "--name", "db", "--secret", "pw", "--config", "source=cf,target=/etc/cf", "--network", "back", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000")
	db := c.tasks("db")[0].ID
	if r := c.on("m1", "skep", "exec", db, "cat", "/run/secrets/pw", "/etc/cf"); r.Stdout != "hiddenshown" {
		t.Errorf("the files hold %q %s", r.Stdout, r.Stderr)
	}
	holds(t, "network inspect", c.docker("network", "inspect", "-v", "back"), `"Scope": "swarm"`, `"Driver": "overlay"`, `"db"`)
	c.dockerRefused("secret 'pw' is in use by the following service: db", "secret", "rm", "pw")
	c.dockerRefused("network back is in use by service db", "network", "rm", "back")
	c.docker("service", "rm", "db", "web")
	c.docker("secret", "rm", "pw")
	c.docker("config", "rm", "cf")
	c.docker("network", "rm", "back")

	// Nodes.
	c.docker("node", "update", "--availability", "drain", "--label-add", "a=b", "w2")
	if got := c.docker("node", "inspect", "-f", "{{.Spec.Availability}} {{.Spec.Labels}}", "w2"); got != "drain map[a:b]" {
		t.Errorf("node update: %s", got)
	}
	c.docker("node", "update", "--availability", "active", "w2")
	c.dockerRefused("is not down and can't be removed", "node", "rm", "w2")
	if got, want := c.docker("swarm", "join-token", "-q", "worker"), c.skep("join-token", "-q", "worker"); got != want {
		t.Errorf("docker's token is %s, skep's %s", got, want)
	}
	c.docker("swarm", "update", "--task-history-limit", "4")

	// A job, and a client of long ago.
	c.docker("service", "create", "-q", "--name", "job", "--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2", "busybox", "true")
	if got := c.docker("service", "ls", "--filter", "mode=replicated-job", "--format", "{{.Name}} {{.Replicas}}"); got != "job 0/2 (3/3 completed)" {
		t.Errorf("a job: %s", got)
	}
	for _, v := range []string{"1.24", "1.40", "1.44"} {
		if r := c.on("m1", "env", "DOCKER_API_VERSION="+v, "docker", "--context", "skep", "node", "ls", "-q"); r.Code != 0 || strings.Count(r.Stdout, "\n") != 3 {
			t.Errorf("version %s: %d %s%s", v, r.Code, r.Stdout, r.Stderr)
		}
	}
	c.docker("service", "rm", "job")

	// A stack: deployed, deployed again, shown by both, removed.
	c.must("m1", `mkdir -p /srv/st && cd /srv/st && printf pw1 > pw && printf cfg > cf && cat > s.yml <<E
version: "3.8"
services:
  web:
    image: whoami:v1
    ports: ["8081:80"]
    networks: [front]
    environment: {B: c}
    deploy: {replicas: 2, labels: {x: y}, update_config: {order: start-first}}
  db:
    image: busybox
    command: sleep 100000
    stop_signal: SIGKILL
    secrets: [pw]
    configs: [{source: cf, target: /etc/cf}]
    networks: [front]
    volumes: ["data:/data"]
networks: {front: {}}
volumes: {data: {}}
secrets: {pw: {file: ./pw}}
configs: {cf: {file: ./cf}}
E`)
	deploy := func() lab.Result {
		t.Helper()
		return c.on("m1", "sh", "-c", "cd /srv/st && docker --context skep stack deploy --detach=false -q -c s.yml shop")
	}
	for range 2 {
		if r := deploy(); r.Code != 0 {
			t.Fatalf("stack deploy: %s%s", r.Stdout, r.Stderr)
		}
	}
	if got := c.docker("stack", "ls", "--format", "{{.Name}} {{.Services}}"); got != "shop 2" {
		t.Errorf("stack ls: %s", got)
	}
	if got := c.docker("stack", "services", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}", "shop"); got != "shop_db 1/1 \nshop_web 2/2 *:8081->80/tcp" {
		t.Errorf("stack services: %q", got)
	}
	if got := strings.Count(c.docker("stack", "ps", "-q", "shop"), "\n") + 1; got != 3 {
		t.Errorf("stack ps: %d tasks: the second deployment changed them", got)
	}
	if r := c.on("m1", "skep", "exec", c.tasks("shop_db")[0].ID, "sh", "-c", "cat /run/secrets/pw /etc/cf; wget -qO- http://web/"); !strings.HasPrefix(r.Stdout, "pw1cfg") || !strings.Contains(r.Stdout, "v1") {
		t.Errorf("the stack's files and names: %q %s", r.Stdout, r.Stderr)
	}
	c.must("m1", "printf other > /srv/st/pw")
	if r := deploy(); r.Code == 0 || !strings.Contains(r.Stderr, "only updates to Labels are allowed") {
		t.Errorf("another value for a secret: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}

	// What happened, told to who listened and to who asks.
	var kinds []string
	for _, line := range strings.Split(c.docker("events", "--since", "10m", "--until", "0s", "--filter", "type=service", "--filter", "type=network", "--format", "json"), "\n") {
		var e struct{ Type, Action, Scope string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Scope != "swarm" {
			t.Fatalf("event %q: %v", line, err)
		}
		kinds = append(kinds, e.Type+" "+e.Action)
	}
	holds(t, "events", fmt.Sprint(kinds), "service create", "service update", "service remove", "network create", "network remove")
	if strings.Contains(fmt.Sprint(kinds), "node") {
		t.Errorf("events that were filtered out: %v", kinds)
	}
	c.docker("stack", "rm", "--detach=false", "shop")
	if got := c.docker("stack", "ls", "--format", "{{.Name}}") + c.docker("secret", "ls", "-q") + c.docker("config", "ls", "-q") + c.docker("network", "ls", "-q", "--filter", "type=custom"); got != "" {
		t.Errorf("left of the stack: %s", got)
	}
	c.awaitClean(time.Minute, c.members()...)
}

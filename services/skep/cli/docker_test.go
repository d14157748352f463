package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
)

// dockerCLI records the golden files anew: they are what Docker's own command prints of the same objects.
var dockerCLI = flag.String("docker", "", "path of a docker command (28 or later) whose output is recorded in testdata/docker")

// dockerLines are command lines that both print alike. Without {{.CurrentState}}, which tells of the time.
var dockerLines = map[string][]string{
	"events":          {"events", "--since", "1h", "--until", "0s"},
	"events-json":     {"events", "--since", "1h", "--until", "0s", "--format", "json"},
	"events-template": {"events", "--since", "1h", "--until", "0s", "--format", `{{.Type}} {{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}} {{.Time}} {{.TimeNano}} {{.Scope}}`},
	"events-actor":    {"events", "--since", "1h", "--until", "0s", "--format", "{{.Actor}}"},
	"ps-template":     {"service", "ps", "--format", "{{.ID}} {{.Name}} {{.Image}} {{.Node}} {{.DesiredState}} {{.Error}}|{{.Ports}}", "web"},
	"ps-table":        {"service", "ps", "--format", `table {{.Name}}\t{{.Image}}\t{{.Node}}\t{{.Error}}`, "web"},
	"ps-quiet":        {"service", "ps", "-q", "web"},
	"node-ls":         {"node", "ls"},
	"node-ls-self":    {"node", "ls", "--format", "{{.Hostname}}{{if .Self}} *{{end}} {{json .Self}} {{.ManagerStatus}}"},
	"service-ls":      {"service", "ls"},
	"service-ls-json": {"service", "ls", "--format", "json"},
	"service-ls-q":    {"service", "ls", "-q"},
	"node-ls-q":       {"node", "ls", "-q"},
	"info-template":   {"info", "--format", "{{.Name}} {{.ServerVersion}} {{.Swarm.LocalNodeState}} {{.Swarm.NodeID}} {{.Swarm.NodeAddr}} {{.Swarm.ControlAvailable}} {{.Swarm.Nodes}} {{.Swarm.Managers}} {{.Swarm.Cluster.ID}}"},
	"info-managers":   {"info", "--format", "{{range .Swarm.RemoteManagers}}{{.NodeID}} {{.Addr}}{{end}} {{json .Swarm.RemoteManagers}}"},
	"version-server":  {"version", "--format", "{{.Server.Version}}"},
}

// What a script reads of Docker it reads of skep: the same objects, the same command line, the same text.
func TestPrintsAsDockerDoes(t *testing.T) {
	if *dockerCLI != "" {
		recordDocker(t)
	}
	c := newCluster(t)
	c.nodes[0].Description.Hostname = "m1"
	c.nodes[0].Spec.Availability = skepv1.Availability_AVAILABILITY_ACTIVE
	c.nodes[0].Manager = &skepv1.ManagerStatus{Leader: true, Reachability: "reachable", Addr: "10.0.0.1:2377"}
	s := webService()
	s.Spec.Task.Container.Image = "httpd:2.4"
	s.Spec.Mode.GetReplicated().Replicas, s.Status.Running, s.Status.Desired = 2, 2, 2
	c.services = []*skepv1.Service{s}
	task := func(id string, slot uint64, state, desired skepv1.TaskState, age time.Duration, text string) *skepv1.Task {
		k := webTask(id, slot, state)
		k.NodeHostname, k.Desired, k.Status.Err, k.Image = "m1", desired, text, "httpd:2.4@sha256:"+strings.Repeat("ab", 32)
		k.Meta.CreatedAt = timestamppb.New(testNow.Add(-age))
		return k
	}
	running := skepv1.TaskState_TASK_STATE_RUNNING
	c.tasks = []*skepv1.Task{task("task1task1task1task1task1", 1, running, running, time.Minute, ""),
		task("task0task0task0task0task0", 1, skepv1.TaskState_TASK_STATE_FAILED, skepv1.TaskState_TASK_STATE_SHUTDOWN, 10*time.Minute, "task: non-zero exit (1) and some more words"),
		task("task2task2task2task2task2", 2, running, running, 2*time.Minute, "")}
	c.events = []*skepv1.Event{
		{Kind: "service", Verb: "update", Id: webID, Name: "web", Attributes: map[string]string{"image.new": "httpd:2.5", "image.old": "httpd:2.4"}, Time: timestamppb.New(time.Unix(0, 1767366000123456789))},
		{Kind: "node", Verb: "remove", Id: nodeID, Time: timestamppb.New(time.Unix(1767366001, 0))},
	}
	c.info = &conn.Info{NodeID: nodeID, Role: "manager", Hostname: "m1", ClusterID: "cluster1", Version: "0.1.0", Addr: "10.0.0.1", State: "ready", ManagerAddrs: []string{"10.0.0.1:2377"}}
	for name, line := range dockerLines {
		want, err := os.ReadFile(filepath.Join("testdata", "docker", name+".golden"))
		if err != nil {
			t.Fatal(err)
		}
		r := c.run(line...)
		if got := ends.ReplaceAllString(r.out, "\n"); r.code != 0 || r.err != "" || got != string(want) {
			t.Errorf("skep %s: status %d %s\n%s\ndocker prints\n%s", strings.Join(line, " "), r.code, r.err, got, want)
		}
	}
	for name, line := range map[string]string{"info-json": "info -f json", "version-json": "version -f json"} {
		want, err := os.ReadFile(filepath.Join("testdata", "docker", name+".golden"))
		if err != nil {
			t.Fatal(err)
		}
		r := c.run(strings.Fields(line)...)
		var docker, skep any
		if err := json.Unmarshal(want, &docker); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(r.out), &skep); err != nil || strings.Count(r.out, "\n") != 1 {
			t.Errorf("%s: %v\n%s", line, err, r.out)
		}
		sameForm(t, line, skep, docker)
	}
}

// ends are blanks at the ends of lines, where columns differ in what follows them.
var ends = regexp.MustCompile(`(?m)[ \t]+$\n`)

// sameForm: what both have is of one form. Docker has much that is not skep's to tell.
func sameForm(t *testing.T, at string, skep, docker any) {
	t.Helper()
	switch d := docker.(type) {
	case map[string]any:
		s, ok := skep.(map[string]any)
		if !ok {
			t.Errorf("%s is %T, and an object in Docker", at, skep)
			return
		}
		for k, v := range d {
			if have, both := s[k]; both && v != nil {
				sameForm(t, at+"."+k, have, v)
			}
		}
	case []any:
		s, ok := skep.([]any)
		if !ok {
			t.Errorf("%s is %T, and a list in Docker", at, skep)
			return
		}
		if len(d) > 0 && len(s) > 0 {
			sameForm(t, at+"[0]", s[0], d[0])
		}
	case string:
		if _, ok := skep.(string); !ok {
			t.Errorf("%s is %T, and a text in Docker", at, skep)
		}
	case float64:
		if _, ok := skep.(float64); !ok {
			t.Errorf("%s is %T, and a number in Docker", at, skep)
		}
	case bool:
		if _, ok := skep.(bool); !ok {
			t.Errorf("%s is %T, and true or false in Docker", at, skep)
		}
	}
}

// recordDocker has Docker's command print what a daemon with the objects of the test answers.
func recordDocker(t *testing.T) {
	type obj = map[string]any
	task := func(id string, slot int, state, desired, at, text string) obj {
		return obj{"ID": id, "CreatedAt": at, "Spec": obj{"ContainerSpec": obj{"Image": "httpd:2.4@sha256:" + strings.Repeat("ab", 32)}}, "ServiceID": webID, "Slot": slot, "NodeID": nodeID,
			"Status": obj{"Timestamp": at, "State": state, "Err": text}, "DesiredState": desired}
	}
	node := obj{"ID": nodeID, "Spec": obj{"Role": "manager", "Availability": "active"}, "Description": obj{"Hostname": "m1", "Engine": obj{"EngineVersion": "0.1.0"}},
		"Status": obj{"State": "ready", "Addr": "10.0.0.1"}, "ManagerStatus": obj{"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"}}
	service := obj{"ID": webID, "Spec": obj{"Name": "web", "TaskTemplate": obj{"ContainerSpec": obj{"Image": "httpd:2.4"}}, "Mode": obj{"Replicated": obj{"Replicas": 2}}}, "ServiceStatus": obj{"RunningTasks": 2, "DesiredTasks": 2}}
	answers := map[string]any{
		"/info": obj{"ID": nodeID, "Name": "m1", "ServerVersion": "0.1.0", "Swarm": obj{"NodeID": nodeID, "NodeAddr": "10.0.0.1", "LocalNodeState": "active", "ControlAvailable": true,
			"RemoteManagers": []obj{{"NodeID": nodeID, "Addr": "10.0.0.1:2377"}}, "Nodes": 1, "Managers": 1, "Cluster": obj{"ID": "cluster1"}}},
		"/version": obj{"Version": "0.1.0", "ApiVersion": "1.50", "Os": "linux", "Arch": "amd64"},
		"/tasks": []obj{task("task1task1task1task1task1", 1, "running", "running", "2026-01-02T14:59:00Z", ""), task("task0task0task0task0task0", 1, "failed", "shutdown", "2026-01-02T14:50:00Z", "task: non-zero exit (1) and some more words"),
			task("task2task2task2task2task2", 2, "running", "running", "2026-01-02T14:58:00Z", "")},
		"/nodes": []obj{node}, "/nodes/" + nodeID: node, "/services": []obj{service}, "/services/web": service, "/services/" + webID: service,
	}
	events := []obj{{"Type": "service", "Action": "update", "Actor": obj{"ID": webID, "Attributes": obj{"name": "web", "image.new": "httpd:2.5", "image.old": "httpd:2.4"}}, "scope": "swarm", "time": 1767366000, "timeNano": 1767366000123456789},
		{"Type": "node", "Action": "remove", "Actor": obj{"ID": nodeID, "Attributes": obj{}}, "scope": "swarm", "time": 1767366001, "timeNano": 1767366001000000000}}
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	versioned := regexp.MustCompile(`^/v1\.\d+`)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.50")
		w.Header().Set("Ostype", "linux")
		w.Header().Set("Content-Type", "application/json")
		path := versioned.ReplaceAllString(r.URL.Path, "")
		if path == "/events" {
			for _, e := range events {
				_ = json.NewEncoder(w).Encode(e)
			}
			return
		}
		if a, ok := answers[path]; ok {
			_ = json.NewEncoder(w).Encode(a)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	defer func() { _ = srv.Close() }()
	lines := map[string][]string{"info-json": {"info", "-f", "json"}, "version-json": {"version", "-f", "json"}}
	for name, line := range dockerLines {
		lines[name] = line
	}
	for name, line := range lines {
		cmd := exec.Command(*dockerCLI, line...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		cmd.Env = []string{"DOCKER_HOST=unix://" + socket, "TZ=UTC", "HOME=" + t.TempDir()}
		if err := cmd.Run(); err != nil {
			t.Fatalf("docker %s: %v %s", strings.Join(line, " "), err, errs.String())
		}
		if err := os.MkdirAll(filepath.Join("testdata", "docker"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("testdata", "docker", name+".golden"), ends.ReplaceAll(out.Bytes(), []byte("\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

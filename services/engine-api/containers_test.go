package engine

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"skep.dev/libs/member"
)

const webName = "web.1." + taskID

func ids(list []container.Summary) string {
	var out []string
	for _, c := range list {
		out = append(out, c.ID[:5])
	}
	return strings.Join(out, " ")
}

// A worker tells of its own containers, whoever leads the cluster, in the form that docker and the collectors of logs read.
func TestContainersOfAWorker(t *testing.T) {
	r, _ := newNodeRig(t, member.RoleWorker)
	var list []container.Summary
	r.get("/containers/json", &list)
	if len(list) != 1 {
		t.Fatal(list)
	}
	c := list[0]
	if c.ID != taskID || fmt.Sprint(c.Names) != "[/"+webName+"]" || c.State != "running" || c.Status != "Up 5 minutes (healthy)" || c.Command != "/bin/web -v" || c.Created != 1e9 {
		t.Errorf("%+v", c)
	}
	if got := fmt.Sprint(c.NetworkSettings.Networks["back"].IPAddress, c.Ports[0].PublicPort, c.Ports[1].PrivatePort, c.Mounts[0].Name); got != "10.0.0.3 8443 80data" {
		t.Error(got)
	}
	want := map[string]string{"a": "b", "com.docker.swarm.task": "", "com.docker.swarm.task.id": taskID, "com.docker.swarm.task.name": webName,
		"com.docker.swarm.node.id": nodeID, "com.docker.swarm.service.id": webID, "com.docker.swarm.service.name": "web"}
	if fmt.Sprint(c.Labels) != fmt.Sprint(want) {
		t.Error(c.Labels)
	}
	for _, ref := range []string{taskID, taskID[:12], "task1", webName, "/" + webName, "%2F" + webName} {
		for _, v := range []string{"", "/v1.24", "/v1.51", "/v1.52"} {
			code, body := r.do("GET", v+"/containers/"+ref+"/json", "")
			var d container.InspectResponse
			if err := json.Unmarshal([]byte(body), &d); err != nil || code != 200 || d.Name != "/"+webName {
				t.Fatalf("%s%s: %d %s %v", v, ref, code, body, err)
			}
			if !d.State.Running || d.Config.Hostname != taskID[:12] || d.Config.Tty || fmt.Sprint(d.Config.Env) != "[PATH=/bin COLOUR=blue]" || d.HostConfig.LogConfig.Type != "json-file" || d.Path != "/bin/web" {
				t.Errorf("%s", body)
			}
			if legacy := strings.Contains(body, `"IPAddress":""`); legacy != (v != "" && v != "/v1.52") {
				t.Errorf("%s: fields of old clients: %v", v, legacy)
			}
			if strings.Contains(body, secretWord) {
				t.Errorf("a password is told: %s", body)
			}
		}
	}
	if code, body := r.do("GET", "/containers/json?all=1", ""); code != 200 || strings.Contains(body, secretWord) || !strings.Contains(body, "Exited (3) 2 hours ago") {
		t.Error(body)
	}
	r.refused(404, "No such container: nothing", "GET", "/containers/nothing/json", "")
	r.refused(400, "Multiple IDs found with provided prefix: task", "GET", "/containers/task/json", "")
	r.refused(503, "This node is not a swarm manager", "GET", "/services", "")
	for _, name := range []string{"..", "%2e%2e", "a%2Fb", "a%0Ab", "%00", "%2F", "%2F..", strings.Repeat("x", 5000)} {
		if code, body := r.do("GET", "/containers/"+name+"/json", ""); code != 400 && code != 404 {
			t.Errorf("%.20s: %d %s", name, code, body)
		}
	}
}

func TestContainerFilters(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	n.add("task3task3task3task3task33", "db", 1, nil)
	for filter, want := range map[string]string{
		`{}`:                     "task3 task2 task1",
		`{"name":["web"]}`:       "task2 task1",
		`{"name":["^/web\\.1"]}`: "task1",
		`{"name":["("]}`:         "",
		`{"id":["task3"]}`:       "task3",
		`{"status":["created"]}`: "task3",
		`{"status":["exited"]}`:  "task2",
		`{"exited":["3"]}`:       "task2",
		`{"exited":["0"]}`:       "",
		`{"health":["healthy"]}`: "task1",
		`{"is-task":["true"]}`:   "task3 task2 task1",
		`{"is-task":["false"]}`:  "",
		`{"label":["a=b"]}`:      "task3 task2 task1",
		`{"label":["com.docker.swarm.service.name=db"]}`: "task3",
		`{"ancestor":["reg.lan/web:2"]}`:                 "task3 task2 task1",
		`{"ancestor":["111111111111"]}`:                  "task3 task2 task1",
		`{"ancestor":["reg.lan/web"]}`:                   "",
		`{"before":["web.2.` + oldID + `"]}`:             "task1",
		`{"since":["` + oldID + `"]}`:                    "task3",
		`{"network":["back"]}`:                           "task3 task2 task1",
		`{"network":["other"]}`:                          "",
		`{"volume":["/data"]}`:                           "task3 task2 task1",
		`{"publish":["8443/tcp"]}`:                       "task3 task2 task1",
		`{"publish":["80"]}`:                             "",
		`{"expose":["80"]}`:                              "task3 task2 task1",
	} {
		var list []container.Summary
		r.get("/containers/json?all=1&filters="+url.QueryEscape(filter), &list)
		if ids(list) != want {
			t.Errorf("%s: %s, want %s", filter, ids(list), want)
		}
	}
	var list []container.Summary
	if r.get("/containers/json?limit=2", &list); ids(list) != "task3 task2" {
		t.Error(ids(list))
	}
	for filter, want := range map[string]string{`{"colour":["red"]}`: "invalid filter 'colour'", `{"status":["well"]}`: "invalid filter 'status=well'", `{"exited":["x"]}`: "invalid filter 'exited=x'",
		`{"name":["` + strings.Repeat("a", 300) + `"]}`: "longer than 256 bytes"} {
		r.refused(400, want, "GET", "/containers/json?filters="+url.QueryEscape(filter), "")
	}
	r.refused(404, "No such container: nothing", "GET", "/containers/json?filters="+url.QueryEscape(`{"before":["nothing"]}`), "")
}

// A container belongs to its service: what would end it behind the managers' back is refused, and says what to do.
func TestContainersStay(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	for _, route := range []string{"POST stop", "POST kill", "POST restart", "POST start", "POST pause", "POST rename", "POST update", "DELETE "} {
		method, verb, _ := strings.Cut(route, " ")
		path := strings.TrimSuffix("/containers/"+taskID[:12]+"/"+verb, "/")
		r.refused(409, "it is task "+webName+" of service web", method, path, "")
		r.refused(409, "docker service update", method, path, "")
		r.refused(404, "No such container: x", method, strings.Replace(path, taskID[:12], "x", 1), "")
	}
	n.mu.Lock()
	n.gone = true
	n.mu.Unlock()
	r.refused(503, "the agent of this node is starting, or stopping", "GET", "/containers/json", "")
}

func TestImagesAndVolumesOfANode(t *testing.T) {
	r, _ := newNodeRig(t, member.RoleWorker)
	if code, body := r.do("GET", "/images/json", ""); code != 200 || strings.Count(body, `"Id"`) != 2 || !strings.Contains(body, `"RepoTags":["reg.lan/web:2","web:latest"]`) {
		t.Error(code, body)
	}
	for ref, want := range map[string]int{"web": 200, "web:latest": 200, "reg.lan/web:2": 200, "reg.lan/web": 404, strings.Repeat("1", 12): 200, "sha256:" + strings.Repeat("1", 64): 200, "nothing": 404,
		"web@sha256:" + strings.Repeat("ab", 32): 200} {
		if code, body := r.do("GET", "/images/"+ref+"/json", ""); code != want {
			t.Errorf("%s: %d %s", ref, code, body)
		}
	}
	code, body := r.do("GET", "/volumes", "")
	if code != 200 || strings.Count(body, `"Name"`) != 2 || strings.Contains(body, `"CreatedAt":null`) || !strings.Contains(body, "driver dead") {
		t.Error(code, body)
	}
	if code, body := r.do("GET", "/volumes?filters="+url.QueryEscape(`{"dangling":["true"]}`), ""); strings.Count(body, `"Name":"free"`) != 1 || strings.Contains(body, `"data"`) {
		t.Error(code, body)
	}
	if code, body := r.do("GET", "/volumes/data", ""); code != 200 || !strings.Contains(body, `"Mountpoint":"/v/data"`) {
		t.Error(code, body)
	}
	r.refused(404, "No such volume: nothing", "GET", "/volumes/nothing", "")
}

// Where the agent is another process the node's part says so, and docker inspect goes on to the next kind.
func TestWithoutAnAgent(t *testing.T) {
	r := serveNode(t, member.RoleWorker, nil)
	r.refused(501, "use docker service ps", "GET", "/containers/json", "")
	r.refused(404, "No such container: x", "GET", "/containers/x/json", "")
	r.refused(404, "No such image: x", "GET", "/images/x/json", "")
	r.refused(404, "No such volume: x", "GET", "/volumes/x", "")
}

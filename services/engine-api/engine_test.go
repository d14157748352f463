package engine

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/event"
	"skep.dev/libs/member"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// Who may come: root, and who runs the service. Where there is the group, the socket is its too, and members are told that it gives
// them nothing.
func TestWhoMayCome(t *testing.T) {
	for _, c := range []struct {
		uid, self uint32
		may       bool
	}{{0, 0, true}, {0, 2377, true}, {2377, 2377, true}, {1000, 0, false}, {1000, 2377, false}} {
		if err := mayUser(c.uid, c.self); (err == nil) != c.may {
			t.Errorf("user %d, of a service that user %d runs: %v", c.uid, c.self, err)
		}
	}
	g, err := user.LookupGroupId(fmt.Sprint(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	for group, want := range map[string]os.FileMode{"": 0o600, "no-such-group-here": 0o600, g.Name: 0o660} {
		path := filepath.Join(t.TempDir(), "d.sock")
		l, err := listen(path, group, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("group %q: %v %v", group, fi.Mode(), err)
		}
		l.Close()
	}
	if code, _ := serveNode(t, "", nil).do("GET", "/_ping", ""); code != 200 {
		t.Error("who runs the service may not come")
	}
}

// A node that is no manager answers what is its own, and Docker's words to the rest.
func TestStandings(t *testing.T) {
	for role, want := range map[string]struct {
		status, swarm, node string
	}{
		"":                 {sayNone, "inactive", "inactive"},
		member.RoleWorker:  {sayWorker, "active/worker", "active"},
		member.RoleManager: {"the manager on this node does not take connections", "active/manager", "pending"},
	} {
		r := serveNode(t, role, nil)
		for _, ask := range []string{"GET /services", "GET /v1.41/nodes", "GET /tasks", "GET /swarm", "GET /events", "GET /services/web/logs", "DELETE /services/web", "GET /distribution/nginx/json"} {
			method, path, _ := strings.Cut(ask, " ")
			r.refused(503, want.status, method, path, "")
		}
		resp, err := r.http.Get("http://docker/_ping")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Swarm"); got != want.swarm {
			t.Errorf("%s: %s", role, got)
		}
		var i system.Info
		r.get("/info", &i)
		if string(i.Swarm.LocalNodeState) != want.node || i.Swarm.ControlAvailable || i.Swarm.RemoteManagers == nil || len(i.Warnings) == 0 || i.ServerVersion != "1.2.3" || i.MemTotal == 0 {
			t.Errorf("%s: %+v", role, i)
		}
		if role == member.RoleWorker && (len(i.Swarm.RemoteManagers) != 1 || i.Swarm.RemoteManagers[0].Addr != "10.1.1.2:2377" || i.Swarm.NodeID != nodeID) {
			t.Errorf("%+v", i.Swarm)
		}
	}
}

func TestPingAndVersion(t *testing.T) {
	r := serveNode(t, member.RoleWorker, nil)
	for _, path := range []string{"/_ping", "/v1.24/_ping"} {
		if code, body := r.do("GET", path, ""); code != 200 || body != "OK" {
			t.Error(code, body)
		}
		if code, body := r.do("HEAD", path, ""); code != 200 || body != "" {
			t.Error(code, body)
		}
	}
	var v system.VersionResponse
	r.get("/version", &v)
	if v.Version != "1.2.3" || v.APIVersion != "1.56" || v.MinAPIVersion != "1.24" || len(v.Components) != 1 || v.Components[0].Name != "Engine" {
		t.Errorf("%+v", v)
	}
}

// What is not served says so by name, and what to use instead; what `docker inspect` tries one after the other is not there.
func TestUnserved(t *testing.T) {
	r := serveNode(t, member.RoleManager, nil)
	for ask, want := range map[string]string{
		"POST /containers/create?name=x": "docker service create",
		"GET /containers/json":           "docker service ps",
		"POST /containers/x/exec":        "skep exec",
		"GET /images/json":               "skep image ls",
		"POST /images/create":            "skep image ls, pull",
		"DELETE /images/a/b":             "skep image",
		"POST /build":                    "push the image",
		"GET /volumes":                   "skep volume ls",
		"POST /auth":                     "skep login",
		"GET /system/df":                 "skep image ls",
		"POST /networks/x/connect":       "--network-add",
		"POST /swarm/leave":              "skep leave",
	} {
		method, path, _ := strings.Cut(ask, " ")
		r.refused(501, want, method, path, "")
	}
	r.refused(503, "already part of a swarm", "POST", "/swarm/init", "{}")
	for path, want := range map[string]string{"/containers/x/json": "No such container: x", "/images/a/b:1/json": "No such image: a/b:1", "/volumes/x": "No such volume: x", "/plugins/x/json": "No such plugin: x", "/nothing": "page not found"} {
		r.refused(404, want, "GET", path, "")
	}
	if code, body := r.do("GET", "/plugins", ""); code != 200 || body != "[]" {
		t.Error(code, body)
	}
}

func TestReads(t *testing.T) {
	r := newRig(t)
	var list []swarm.Service
	for query, n := range map[string]int{
		"": 1, `?filters={"name":{"we":true}}`: 1, `?filters={"name":["x"]}`: 0, `?filters={"label":{"a=b":true}}`: 1, `?filters={"label":["a=b","c"]}`: 0,
		`?filters={"mode":["global"]}`: 0, `?filters={"id":["webweb"]}`: 1, `?filters={"runtime":["plugin"]}`: 0,
	} {
		r.get("/services"+query, &list)
		if len(list) != n {
			t.Errorf("%s: %d services", query, len(list))
		}
	}
	r.refused(400, "invalid filter 'colour'", "GET", `/services?filters={"colour":["red"]}`, "")
	if _, body := r.do("GET", `/services?filters={"name":["x"]}`, ""); body != "[]" {
		t.Errorf("an empty list is %s", body)
	}
	r.get("/v1.41/services?status=true", &list)
	if list[0].ServiceStatus == nil {
		t.Error("no counts")
	}
	r.get("/v1.40/services?status=true", &list)
	list[0] = swarm.Service{}
	r.get("/v1.40/services?status=true", &list)
	if list[0].ServiceStatus != nil {
		t.Error("counts for a client that does not know them")
	}
	for _, ref := range []string{webID, "web", webID[:5]} {
		var s swarm.Service
		r.get("/services/"+ref+"?insertDefaults=true", &s)
		if s.ID != webID || s.Version.Index != version || s.PreviousSpec == nil || s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "reg.lan/web:1" || s.Spec.UpdateConfig == nil {
			t.Errorf("%+v", s)
		}
	}
	r.refused(404, "service nothing not found", "GET", "/services/nothing", "")
	if code, body := r.do("GET", "/services/web", ""); code != 200 || strings.Contains(body, authID) {
		t.Errorf("it shows which credentials it has: %s", body)
	}

	var tasks []swarm.Task
	r.get("/tasks", &tasks)
	if len(tasks) != 2 || tasks[0].Spec.ContainerSpec.Image != "reg.lan/web:2" || tasks[1].Spec.ContainerSpec.Image != "reg.lan/web:1" || len(tasks[0].NetworksAttachments) != 1 || tasks[0].NetworksAttachments[0].Network.Spec.Name != "back" {
		t.Errorf("%+v", tasks)
	}
	for query, want := range map[string]string{`{"_up-to-date":{"true":true}}`: taskID, `{"_up-to-date":["false"]}`: oldID, `{"name":["web.2"]}`: oldID, `{"label":["a"],"name":["web.1"]}`: taskID} {
		r.get("/tasks?filters="+query, &tasks)
		if len(tasks) != 1 || tasks[0].ID != want {
			t.Errorf("%s: %+v", query, tasks)
		}
	}
	asked[*skepv1.ListTasksRequest](r)
	r.get(`/tasks?filters={"service":["web"],"desired-state":["running"],"node":["m1"]}`, &tasks)
	if q := asked[*skepv1.ListTasksRequest](r); len(q) != 1 || len(q[0].Filters) != 3 {
		t.Errorf("%v", q)
	}

	var nodes []swarm.Node
	r.get(`/nodes?filters={"role":["manager"]}`, &nodes)
	if len(nodes) != 1 || nodes[0].Description.TLSInfo.TrustRoot == "" || !nodes[0].ManagerStatus.Leader {
		t.Errorf("%+v", nodes)
	}
	r.get(`/nodes?filters={"role":["worker"]}`, &nodes)
	if len(nodes) != 0 {
		t.Errorf("%+v", nodes)
	}
	var nets []network.Inspect
	r.get(`/networks?filters={"name":["ac"],"scope":["swarm"],"dangling":["true"]}`, &nets)
	if len(nets) != 1 || nets[0].ID != netID {
		t.Errorf("%+v", nets)
	}
	var i system.Info
	r.get("/info", &i)
	if !i.Swarm.ControlAvailable || i.Swarm.Cluster == nil || i.Swarm.Cluster.ID != "c" || i.Swarm.Nodes != 1 || i.Swarm.Managers != 1 {
		t.Errorf("%+v", i.Swarm)
	}
}

// The state of an update that was before the newest change is not shown: docker would take it for that of its own.
func TestAnOldUpdateIsNotShown(t *testing.T) {
	at := func(sec int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(sec, 0)) }
	for name, c := range map[string]struct {
		status *skepv1.UpdateStatus
		shown  bool
	}{
		"none":                     {nil, false},
		"of this revision":         {&skepv1.UpdateStatus{State: "completed", Revision: 2, CompletedAt: at(200)}, true},
		"of the revision before":   {&skepv1.UpdateStatus{State: "completed", Revision: 1, CompletedAt: at(90)}, false},
		"paused, and then updated": {&skepv1.UpdateStatus{State: "paused", Revision: 1}, false},
		"scaled since":             {&skepv1.UpdateStatus{State: "completed", Revision: 2, CompletedAt: at(90)}, false},
		"under way":                {&skepv1.UpdateStatus{State: "updating", Revision: 2}, true},
		"of an older manager":      {&skepv1.UpdateStatus{State: "updating"}, true},
	} {
		s := now(&skepv1.Service{Meta: &skepv1.Meta{UpdatedAt: at(100)}, Revision: 2, UpdateStatus: c.status})
		if (s.UpdateStatus != nil) != c.shown {
			t.Errorf("%s: %v", name, s.UpdateStatus)
		}
	}
}

const body = `{"Name":"api","Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"nginx:1"},"Networks":[{"Target":"back"}]},"Mode":{"Replicated":{}},"Colour":1}`

func TestCreate(t *testing.T) {
	r := newRig(t)
	code, got := r.do("POST", "/v1.51/services/create", body)
	var made swarm.ServiceCreateResponse
	if err := json.Unmarshal([]byte(got), &made); err != nil || code != 201 || made.ID != "new" || len(made.Warnings) != 2 || !strings.Contains(made.Warnings[0], "Colour") {
		t.Fatalf("%d %s", code, got)
	}
	q := asked[*skepv1.CreateServiceRequest](r)
	if len(q) != 1 || !q[0].NoResolveImage || q[0].Spec.Task.Networks[0].Target != netID || q[0].Spec.Mode.GetReplicated().GetReplicas() != 1 || q[0].Spec.Task.Container.RegistryAuth != "" {
		t.Errorf("%v", q)
	}
	if code, got := r.do("POST", "/v1.29/services/create", strings.Replace(body, `"api"`, `""`, 1)); code != 201 {
		t.Fatal(code, got)
	}
	if q := asked[*skepv1.CreateServiceRequest](r); q[0].NoResolveImage || q[0].Spec.Name == "" {
		t.Errorf("%v", q)
	}
	r.refused(409, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already exists", "POST", "/services/create", strings.Replace(body, `"api"`, `"web"`, 1))
	r.refused(400, "invalid JSON", "POST", "/services/create", `{"Name":7}`)
	r.refused(400, "EOF", "POST", "/services/create", "")
	r.refused(501, "NetworkAttachmentSpec", "POST", "/services/create", `{"Name":"x","TaskTemplate":{"NetworkAttachmentSpec":{"ContainerID":"x"}}}`)
	r.refused(413, "request body too large", "POST", "/services/create", `{"Name":"`+strings.Repeat("x", 3<<20)+`"}`)
	if q := asked[*skepv1.CreateServiceRequest](r); len(q) != 1 {
		t.Errorf("what is refused was asked: %v", q)
	}

	// Credentials reach the vault sealed, and the service by their id.
	auth := base64.URLEncoding.EncodeToString([]byte(`{"username":"me","password":"hidden"}`))
	if code, got := r.do("POST", "/services/create", body, headerAuth, auth); code != 201 || strings.Contains(got, "hidden") {
		t.Fatal(code, got)
	}
	if q := asked[*skepv1.CreateServiceRequest](r); q[0].Spec.Task.Container.RegistryAuth != "newauth" || !strings.Contains(string(r.value), `"password":"hidden"`) {
		t.Errorf("%v %s", q, r.value)
	}
	for _, bad := range []string{"%%%", base64.URLEncoding.EncodeToString([]byte("hidden")), strings.Repeat("x", mostAuth+1)} {
		if code, got := r.do("POST", "/services/create", body, headerAuth, bad); code != 400 || strings.Contains(got, "hidden") {
			t.Errorf("%.20s: %d %s", bad, code, got)
		}
	}
}

// A change whose answer was lost is asked again under one id: whoever answers knows it.
func TestALostAnswerIsAskedAgain(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var marks []string
	var again []bool
	r.heard = func(ctx context.Context, q proto.Message) {
		if _, is := q.(*skepv1.CreateServiceRequest); !is {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if marks, again = append(marks, string(rpc.MarkOf(ctx))), append(again, rpc.Again(ctx)); len(marks) == 1 {
			r.cut() // with the answer on its way
		}
	}
	if code, got := r.do("POST", "/services/create", body); code != 201 {
		t.Fatal(code, got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(marks) < 2 || marks[0] == "" || marks[0] != marks[1] || again[0] || !again[1] {
		t.Errorf("%q %v", marks, again)
	}
}

func TestUpdate(t *testing.T) {
	r := newRig(t)
	var s swarm.Service
	r.get("/v1.51/services/web", &s)
	s.Spec.TaskTemplate.ContainerSpec.Env = []string{"A=b"}
	b, err := json.Marshal(s.Spec)
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1.51/services/web/update?registryAuthFrom=spec&version="
	if code, got := r.do("POST", path+"41", string(b)); code != 200 || got != `{"Warnings":null}` {
		t.Fatal(code, got)
	}
	q := asked[*skepv1.UpdateServiceRequest](r)
	if len(q) != 1 || q[0].Version != version || q[0].Ref != webID || q[0].Spec.Task.Container.Env[0] != "A=b" || q[0].Spec.HealthBudget != 7 || q[0].Spec.Task.Container.RegistryAuth != authID {
		t.Errorf("what Docker cannot say is lost: %v", q)
	}
	r.refused(500, "update out of sequence", "POST", path+"40", string(b))
	r.refused(400, "invalid version ''", "POST", "/services/web/update", string(b))
	r.refused(400, "invalid version '-1'", "POST", path+"-1", string(b))
	r.refused(400, "unrecognized rollback option nowhere", "POST", path+"41&rollback=nowhere", string(b))
	r.refused(404, "service nothing not found", "POST", "/services/nothing/update?version=1", string(b))
	r.refused(501, "renaming services is not supported", "POST", path+"41", strings.Replace(string(b), `"Name":"web"`, `"Name":"other"`, 1))
	if q := asked[*skepv1.UpdateServiceRequest](r); len(q) != 0 {
		t.Errorf("what is refused was asked: %v", q)
	}
	// The body of a rollback means nothing.
	if code, got := r.do("POST", path+"41&rollback=previous", `{"Name":"other","TaskTemplate":{"ContainerSpec":{}}}`); code != 200 {
		t.Fatal(code, got)
	}
	if q := asked[*skepv1.UpdateServiceRequest](r); len(q) != 1 || !q[0].Rollback || q[0].Spec != nil || q[0].Version != version {
		t.Errorf("%v", q)
	}
	// Another registry does not get the credentials of the one before.
	moved := strings.Replace(string(b), "reg.lan/web:2", "elsewhere.lan/web:2", 1)
	if code, got := r.do("POST", path+"41", moved); code != 200 {
		t.Fatal(code, got)
	}
	if q := asked[*skepv1.UpdateServiceRequest](r); q[0].Spec.Task.Container.RegistryAuth != "" {
		t.Errorf("%v", q)
	}
	if code, got := r.do("DELETE", "/services/web", ""); code != 200 || got != "" {
		t.Error(code, got)
	}
	r.refused(404, "service web not found", "DELETE", "/services/web", "")
}

// A secret's value leaves the service sealed to the vault and comes back to nobody; a config's comes back.
func TestSecretsAndConfigs(t *testing.T) {
	r := newRig(t)
	data := base64.StdEncoding.EncodeToString([]byte("hidden"))
	for _, word := range []string{"secret", "config"} {
		code, got := r.do("POST", "/"+word+"s/create", `{"Name":"pw","Labels":{"a":"b"},"Data":"`+data+`"}`)
		if code != 201 || got != `{"ID":"`+fileID+`"}` || string(r.value) != "hidden" {
			t.Errorf("%d %s %q", code, got, r.value)
		}
		for _, path := range []string{"/" + word + "s/pw", "/" + word + "s"} {
			_, got := r.do("GET", path, "")
			if shows := strings.Contains(got, data); shows != (path == "/configs/pw") || strings.Contains(got, "hidden") {
				t.Errorf("%s: %s", path, got)
			}
		}
		update := func(version int, labels, data string) (int, string) {
			return r.do("POST", fmt.Sprintf("/%ss/%s/update?version=%d", word, fileID, version), `{"Name":"pw","Labels":`+labels+`,"Data":"`+data+`"}`)
		}
		if code, got := update(8, "{}", data); code != 500 || !strings.Contains(got, "update out of sequence") {
			t.Error(code, got)
		}
		asked[*skepv1.UpdateSecretRequest](r)
		if code, got := update(9, `{"new":"1"}`, data); code != 200 || got != "" {
			t.Error(code, got)
		}
		q := asked[*skepv1.UpdateSecretRequest](r)
		if last := q[len(q)-1]; len(q) != 2 || last.Version != 9 || last.LabelAdd["new"] != "1" || fmt.Sprint(last.LabelRm) != "[old]" || last.Sealed != nil {
			t.Errorf("%v", q)
		}
		if code, got := update(9, `{"old":"1"}`, base64.StdEncoding.EncodeToString([]byte("other"))); code != 400 || !strings.Contains(got, "only updates to Labels are allowed") {
			t.Error(code, got)
		}
		if code, got := update(9, `{"old":"1"}`, ""); code != 200 {
			t.Error(code, got)
		}
		r.refused(404, word+" none not found", "GET", "/"+word+"s/none", "")
		r.refused(400, "", "POST", "/"+word+"s/create", `{"Name":"../x","Data":"`+data+`"}`)
		r.refused(400, "", "POST", "/"+word+"s/create", `{"Name":"x"}`)
	}
	r.refused(501, "Driver", "POST", "/secrets/create", `{"Name":"x","Driver":{"Name":"vault"},"Data":"`+data+`"}`)
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	r.lines = []string{"one\n", "err two\n", "a long", " line\n"}
	path := "/v1.51/services/web/logs?stdout=1&stderr=1&tail=all"
	in, resp, end := r.open(path + "&details=1&timestamps=1")
	defer end()
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.docker.multiplexed-stream" {
		t.Error(got)
	}
	const stamp = "2001-09-09T01:46:40.00000000"
	details := func(task string) string {
		return " com.docker.swarm.node.id=" + nodeID + ",com.docker.swarm.service.id=" + webID + ",com.docker.swarm.task.id=" + task + " "
	}
	seen := map[string]bool{}
	for range 6 {
		seen[frame(t, in)] = true
	}
	for _, task := range []string{taskID, oldID} {
		for _, want := range []string{"1 " + stamp + "0Z" + details(task) + "one\n", "2 " + stamp + "1Z" + details(task) + "err two\n", "1 " + stamp + "3Z" + details(task) + "a long line\n"} {
			if !seen[want] {
				t.Errorf("no frame %q of %v", want, seen)
			}
		}
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
	r.refused(400, "you must choose at least one stream", "GET", "/services/web/logs", "")
	r.refused(404, "service none not found", "GET", "/services/none/logs?stdout=1", "")
	r.refused(400, "invalid time 'yesterday'", "GET", "/services/web/logs?stdout=1&since=yesterday", "")

	// Followed: each line comes as it is written.
	r.follow = make(chan string)
	r.mu.Lock()
	r.lines, r.tasks = nil, r.tasks[:1]
	r.mu.Unlock()
	in, _, end = r.open(path + "&follow=1")
	for _, line := range []string{"first\n", "second\n"} {
		r.follow <- line
		if got := frame(t, in); got != "1 "+line {
			t.Errorf("%q", got)
		}
	}
	end() // the client leaves: nothing of it stays, as TestMain looks
	r.await("the follower is gone", func() bool { return r.s.http.Counts().Streams == 0 })
}

// Who follows one task is let go when it is over and read to its end; who follows a service waits for its next task.
func TestFollowingATaskEndsWithIt(t *testing.T) {
	r := newRig(t)
	r.follow = make(chan string)
	in, _, end := r.open("/tasks/" + taskID + "/logs?stdout=1&follow=1")
	defer end()
	r.follow <- "last words\n"
	if got := frame(t, in); got != "1 last words\n" {
		t.Errorf("%q", got)
	}
	r.mu.Lock()
	over := proto.CloneOf(r.tasks[0])
	over.Status.State, over.Desired = skepv1.TaskState_TASK_STATE_COMPLETE, skepv1.TaskState_TASK_STATE_COMPLETE
	r.tasks = []*skepv1.Task{over}
	r.mu.Unlock()
	close(r.follow)
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
}

// Clients come and go: nothing of them stays.
func TestFollowersGo(t *testing.T) {
	r := newRig(t)
	r.follow = make(chan string)
	for range 10 {
		var ends []func()
		for range 10 {
			_, _, end := r.open("/events")
			_, _, end2 := r.open("/services/web/logs?stdout=1&follow=1")
			ends = append(ends, end, end2)
		}
		if n := r.s.http.Counts().Streams; n < 20 {
			t.Fatal(n)
		}
		for _, end := range ends {
			end()
		}
		r.await("all followers are gone", func() bool { return r.s.http.Counts().Streams == 0 })
	}
	r.http.CloseIdleConnections()
	r.await("their connections are gone", func() bool { return r.s.http.Counts().Connections == 0 })
	nc, err := r.s.cluster.conn()
	if err != nil {
		t.Fatal(err)
	}
	r.await("their subscriptions are gone", func() bool { return nc.NumSubscriptions() <= 1 }) // the one for answers stays
}

// Events come as they happen, from before too, each once; a lost connection ends the stream, so that nobody takes silence for quiet.
func TestEvents(t *testing.T) {
	r := newRig(t)
	tell := func(kind, id, verb string, at time.Time) *skepv1.Event {
		return &skepv1.Event{Kind: kind, Id: id, Name: id + "-name", Verb: verb, Time: timestamppb.New(at), Actor: "user-ada", Attributes: map[string]string{"image.new": "x"}}
	}
	at := time.Now()
	before := tell("service", "s0", "create", at)
	r.past = []*skepv1.Event{before}
	in, _, end := r.open(`/events?since=1&filters={"type":["service"]}`) // the headers are here, whatever comes
	defer end()
	next := func() map[string]any {
		t.Helper()
		line, err := in.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(line), "ada") {
			t.Errorf("it tells who did it: %s", line)
		}
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := next(); m["Actor"].(map[string]any)["ID"] != "s0" || m["scope"] != "swarm" {
		t.Error(m)
	}
	for _, e := range []*skepv1.Event{before, tell("task", "t1", "running", at), tell("node", "n1", "update", at), tell("service", "s1", "update", at.Add(time.Second))} {
		if err := event.Publish(r.nc, e); err != nil {
			t.Fatal(err)
		}
	}
	m := next()
	actor := m["Actor"].(map[string]any)
	if m["Type"] != "service" || m["Action"] != "update" || actor["ID"] != "s1" || actor["Attributes"].(map[string]any)["name"] != "s1-name" || actor["Attributes"].(map[string]any)["image.new"] != "x" {
		t.Error(m)
	}
	r.cut()
	if rest, err := io.ReadAll(in); err == nil || len(rest) > 0 {
		t.Errorf("a lost connection is not seen: %q %v", rest, err)
	}
	r.await("it is connected again", func() bool { code, _ := r.do("GET", "/nodes", ""); return code == 200 })

	// The past alone ends by itself.
	if code, got := r.do("GET", "/events?since=1&until=2", ""); code != 200 || !strings.Contains(got, `"s0"`) {
		t.Error(code, got)
	}
	r.refused(400, "invalid filter 'colour'", "GET", `/events?filters={"colour":["red"]}`, "")
	r.refused(400, "invalid time", "GET", "/events?since=1e99", "")
}

// A service that ends ends its streams.
func TestEndsWithStreamsOpen(t *testing.T) {
	r := newRig(t)
	in, _, end := r.open("/events")
	defer end()
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(in); err != nil {
		t.Logf("the stream ended: %v", err)
	}
}

// BenchmarkInspect compares a read through this service with the same read asked of the cluster directly.
func BenchmarkInspect(b *testing.B) {
	r := newRig(b)
	nc, err := r.s.cluster.conn()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("skep", func(b *testing.B) {
		for b.Loop() {
			if _, err := api.Call(b.Context(), nc, api.ServiceInspect, &skepv1.Ref{Ref: "web"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("docker", func(b *testing.B) {
		for b.Loop() {
			if code, body := r.do("GET", "/v1.51/services/web", ""); code != 200 {
				b.Fatal(code, body)
			}
		}
	})
}

package render

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/golden"
)

var now = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

func ago(d time.Duration) int64 { return now.Add(-d).UnixMilli() }

func at(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }

func from[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

func services(t *testing.T) []*skepv1.Service {
	mk := func(text string) *skepv1.Service { return from(t, &skepv1.Service{}, text) }
	return []*skepv1.Service{
		mk(`meta { id: "cccccccccccccccccccccccc3" } spec { name: "web10" mode { replicated { replicas: 3 } } task { container { image: "httpd:2.4@sha256:abc" } placement { max_replicas_per_node: 2 } } }
			status { running: 1 desired: 3 } endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "tcp" target_port: 81 published_port: 8081 }
			ports { protocol: "udp" target_port: 53 published_port: 53 } ports { protocol: "tcp" target_port: 9 published_port: 9 publish_mode: PUBLISH_MODE_HOST } }`),
		mk(`meta { id: "bbbbbbbbbbbbbbbbbbbbbbbb2" } spec { name: "web2" mode { global {} } task { container { image: "docker.io/library/busybox:latest" } } } status { running: 2 desired: 2 }`),
		mk(`meta { id: "dddddddddddddddddddddddd4" } spec { name: "job" mode { replicated_job { max_concurrent: 2 total_completions: 10 } } task { container { image: "r.example.com:5000/a/b@sha256:abc" } } } status { running: 2 desired: 2 completed: 4 }`),
		mk(`meta { id: "eeeeeeeeeeeeeeeeeeeeeeee5" } spec { name: "gjob" mode { global_job {} } task { container { image: "x" } } } status { running: 1 desired: 1 completed: 2 }`),
	}
}

func tasks(t *testing.T) []*skepv1.Task {
	mk := func(text string, created, since time.Duration) *skepv1.Task {
		k := from(t, &skepv1.Task{}, text)
		k.Meta.CreatedAt = at(created)
		k.Status.SinceUnixMs = ago(since)
		return k
	}
	return []*skepv1.Task{
		mk(`meta { id: "t3aaaaaaaaaaaaaaaaaaaaaaa" } name: "web.10" slot: 10 service_id: "svcid" image: "httpd:2.4@sha256:abc" node_id: "n1" node_hostname: "m1" desired: TASK_STATE_RUNNING status { state: TASK_STATE_RUNNING ports { protocol: "tcp" target_port: 80 published_port: 30001 } }`, time.Hour, 3*time.Minute),
		mk(`meta { id: "t1aaaaaaaaaaaaaaaaaaaaaaa" } name: "web.2" slot: 2 service_id: "svcid" image: "httpd:2.4" node_id: "n1" node_hostname: "m1" desired: TASK_STATE_SHUTDOWN status { state: TASK_STATE_FAILED err: "task: non-zero exit (137): killed by the kernel" }`, 2*time.Hour, 90*time.Minute),
		mk(`meta { id: "t2aaaaaaaaaaaaaaaaaaaaaaa" } name: "web.2" slot: 2 service_id: "svcid" image: "httpd:2.4" desired: TASK_STATE_RUNNING status { state: TASK_STATE_PENDING err: "no suitable node" }`, time.Hour, 500*time.Millisecond),
		mk(`meta { id: "t4aaaaaaaaaaaaaaaaaaaaaaa" } name: "agent.n2aaaaaaaaaaaaaaaaaaaaaaa" service_id: "gid" image: "x" node_id: "n2aaaaaaaaaaaaaaaaaaaaaaa" desired: TASK_STATE_READY status { state: TASK_STATE_PREPARING }`, time.Hour, 61*time.Second),
	}
}

func nodes(t *testing.T) []*skepv1.Node {
	mk := func(text string) *skepv1.Node { return from(t, &skepv1.Node{}, text) }
	return []*skepv1.Node{
		mk(`meta { id: "wwwwwwwwwwwwwwwwwwwwwww10" } description { hostname: "w10" engine_version: "0.1.0" } spec { availability: AVAILABILITY_DRAIN } status { state: NODE_STATE_DOWN }`),
		mk(`meta { id: "mmmmmmmmmmmmmmmmmmmmmmmm1" } description { hostname: "m1" engine_version: "0.1.0" } spec { role: NODE_ROLE_MANAGER } status { state: NODE_STATE_READY } manager { leader: true reachability: "reachable" addr: "10.0.0.1:2377" }`),
		mk(`meta { id: "wwwwwwwwwwwwwwwwwwwwwwww2" } description { hostname: "w2" engine_version: "0.1.0" } spec { availability: AVAILABILITY_PAUSE role: NODE_ROLE_MANAGER } status { state: NODE_STATE_UNKNOWN } manager { reachability: "unreachable" }`),
	}
}

// forms prints a table in every form.
func forms(t *testing.T, name string, table *Table, template string) {
	t.Helper()
	var b bytes.Buffer
	for _, f := range []struct {
		title, format string
		quiet         bool
	}{{"table", "", false}, {"quiet", "", true}, {"json", "json", false}, {"template", template, false}, {"table template", "table " + template, false}} {
		b.WriteString("--- " + f.title + "\n")
		if err := table.Print(&b, f.format, f.quiet); err != nil {
			t.Fatal(err)
		}
	}
	golden.Check(t, name, b.String())
}

func TestLists(t *testing.T) {
	forms(t, "services", Services(services(t), false, now), `{{.Name}}\t{{.Replicas}}`)
	forms(t, "services-no-trunc", Services(services(t), true, now), `{{upper .Name}} {{truncate .ID 3}}`)
	forms(t, "services-empty", Services(nil, false, now), `{{.Name}}`)
	forms(t, "nodes", Nodes(nodes(t), "mmmmmmmmmmmmmmmmmmmmmmmm1"), `{{.Hostname}}: {{.Self}} {{.TLSStatus}}`)
	forms(t, "tasks", Tasks(tasks(t), TaskOptions{Now: now}), `{{.Name}} {{json .Error}}`)
	forms(t, "tasks-no-trunc", Tasks(tasks(t), TaskOptions{Now: now, NoTrunc: true}), `{{.Name}}`)
	forms(t, "tasks-no-resolve", Tasks(tasks(t), TaskOptions{Now: now, NoResolve: true}), `{{.Node}}`)
	revs := []*skepv1.Revision{
		from(t, &skepv1.Revision{CreatedAt: at(time.Minute)}, `number: 3 author: "admin" summary: "image a:1 → a:2" spec { task { container { image: "a:2" } } }`),
		from(t, &skepv1.Revision{CreatedAt: at(50 * time.Hour)}, `number: 2 spec { task { container { image: "a:1" } } }`),
	}
	revs[0].CreatedAt, revs[1].CreatedAt = at(time.Minute), at(50*time.Hour)
	forms(t, "revisions", Revisions(revs, 3, now), `{{.Revision}} {{.Summary}}`)
	images := map[string][]*skepv1.Image{
		"w10": {from(t, &skepv1.Image{}, `name: "httpd:latest" id: "sha256:0123456789abcdef" digest: "sha256:dd" size: 157286400 in_use: true`)},
		"w2":  {from(t, &skepv1.Image{}, `name: "<none>" id: "sha256:fedcba9876543210" size: 12`)},
	}
	images["w10"][0].CreatedAt = at(400 * 24 * time.Hour)
	forms(t, "images", Images(images, now, false), `{{.Node}} {{.Digest}}`)
}

func TestJSONIsOneDocument(t *testing.T) {
	var b bytes.Buffer
	if err := JSON(&b, nodes(t)[:1]); err != nil {
		t.Fatal(err)
	}
	b.WriteString("--- none\n")
	if err := JSON[*skepv1.Node](&b, nil); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "json", b.String())
}

func TestFormatMistakes(t *testing.T) {
	for _, f := range []string{"{{.Nope}}", "{{", "table {{.Nope}}"} {
		err := Services(services(t), false, now).Print(&bytes.Buffer{}, f, false)
		if err == nil || !strings.Contains(err.Error(), "template parsing error") {
			t.Errorf("%s: %v", f, err)
		}
	}
}

const fullService = `
meta { id: "aaaaaaaaaaaaaaaaaaaaaaaa1" version: 7 } revision: 4 previous_revision: 3
spec {
  name: "web" labels { key: "team" value: "x" } labels { key: "bare" value: "" }
  mode { replicated { replicas: 3 } }
  task {
    container {
      image: "httpd:2.4" command: "httpd" args: ["-D", "FG"] env: "A=1" dir: "/srv" user: "www" groups: "g" hostname: "h" init: true tty: true read_only: true
      stop_signal: "QUIT" stop_grace_period { seconds: 10 } labels { key: "c" value: "l" } capability_add: "CAP_CHOWN" capability_drop: "ALL"
      ulimits { name: "nofile" soft: 1 hard: 2 } sysctls { key: "a" value: "b" } hosts: "10.0.0.1 db" dns { nameservers: "1.1.1.1" search: "x.org" options: "ndots:1" }
      mounts { type: TYPE_BIND source: "/a" target: "/b" read_only: true bind_propagation: "rshared" } mounts { source: "v" target: "/v" volume_driver: "rexray" volume_opts { key: "o" value: "1" } }
      mounts { type: TYPE_TMPFS target: "/t" tmpfs_size: 1048576 tmpfs_mode: 1023 }
      secrets { id: "sid" name: "pw" target: "pw" uid: "0" gid: "0" mode: 292 } configs { id: "cid" name: "cf" target: "/cf" uid: "0" gid: "0" mode: 292 }
      health { test: ["CMD-SHELL", "true"] interval { seconds: 5 } timeout { seconds: 1 } start_period { seconds: 30 } retries: 3 }
      privileges { credential_spec: "file://x" no_new_privileges: true }
    }
    resources { limits { nano_cpus: 500000000 memory_bytes: 67108864 pids: 9 } reservations { memory_bytes: 33554432 generic { kind: "GPU" value: 2 } } swap_bytes: -1 memory_swappiness: 10 }
    restart { condition: RESTART_CONDITION_ON_FAILURE delay { seconds: 5 } max_attempts: 3 window { seconds: 60 } }
    placement { constraints: "node.role==worker" preferences { spread: "node.labels.rack" } max_replicas_per_node: 2 platforms { os: "linux" arch: "amd64" } }
    networks { target: "front" aliases: "www" } log_driver { name: "local" options { key: "max-size" value: "1m" } } force_update: 2
  }
  update { parallelism: 2 delay { seconds: 90 } monitor { seconds: 5 } failure_action: FAILURE_ACTION_ROLLBACK max_failure_ratio: 0.5 order: UPDATE_ORDER_START_FIRST }
  rollback { parallelism: 1 monitor { seconds: 5 } failure_action: FAILURE_ACTION_PAUSE order: UPDATE_ORDER_STOP_FIRST }
  endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } dns_starting: true } on_partition: PARTITION_POLICY_STOP
}
endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } virtual_ips { network_id: "net" addr: "10.0.1.2/24" } }
status { running: 2 desired: 3 } update_status { state: "paused" message: "update paused due to failure or early termination of task x" }
`

func TestInspect(t *testing.T) {
	s := from(t, &skepv1.Service{}, fullService)
	s.Meta.CreatedAt, s.Meta.UpdatedAt = at(time.Hour), at(time.Minute)
	s.UpdateStatus.StartedAt = at(time.Minute)
	n := from(t, &skepv1.Node{}, `meta { id: "mmmmmmmmmmmmmmmmmmmmmmmm1" version: 3 } number: 1 subnet: "100.64.0.0/23" spec { role: NODE_ROLE_MANAGER labels { key: "env" value: "test" } }
		description { hostname: "m1" platform { os: "linux" arch: "x86_64" } resources { nano_cpus: 2000000000 memory_bytes: 4294967296 generic { kind: "GPU" named: ["u1", "u2"] } } engine_version: "0.1.0" addr: "10.0.0.1"
		plugins { type: "Volume" name: "local" } plugins { type: "Log" name: "none" } plugins { type: "Log" name: "local" } engine_labels { key: "a" value: "b" } }
		status { state: NODE_STATE_READY } manager { leader: true reachability: "reachable" addr: "10.0.0.1:2377" }`)
	n.Meta.CreatedAt, n.Meta.UpdatedAt = at(time.Hour), at(time.Minute)
	k := tasks(t)[0]
	k.Spec, k.Status.ContainerId, k.Status.Pid = s.Spec.Task, "cid", 12
	k.Meta.UpdatedAt = at(time.Minute)

	show := func(o any, format string) string {
		var b bytes.Buffer
		if err := Inspect(&b, []any{o}, format); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	golden.Check(t, "inspect-service", show(DockerService(s), ""))
	golden.Check(t, "inspect-node", show(DockerNode(n), ""))
	golden.Check(t, "inspect-task", show(DockerTask(k), ""))
	for format, want := range map[string]string{
		`{{.Spec.TaskTemplate.ContainerSpec.Image}}`: "httpd:2.4\n", `{{json .Spec.Mode}}`: `{"Replicated":{"Replicas":3}}` + "\n", `{{.UpdateStatus.State}}`: "paused\n",
		`{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}`: "8080\n",
	} {
		if got := show(DockerService(s), format); got != want {
			t.Errorf("%s = %q, want %q", format, got, want)
		}
	}
	if err := Inspect(&bytes.Buffer{}, []any{DockerService(s)}, "{{.Nope}}"); err == nil {
		t.Error("an unknown field was accepted")
	}
	var b bytes.Buffer
	PrettyService(&b, s, now)
	golden.Check(t, "pretty-service", b.String())
	b.Reset()
	PrettyNode(&b, n)
	golden.Check(t, "pretty-node", b.String())
	b.Reset()
	if err := Inspect(&b, nil, ""); err != nil || b.String() != "[]\n" {
		t.Errorf("inspect of nothing: %q %v", b.String(), err)
	}
}

const placingText = `summary: "1 of 3 nodes suit" nodes: 3
  filters { filter: "ready" } filters { filter: "constraints" text: "scheduling constraints not satisfied on 2 nodes" removed { hostname: "w1" reason: "node.labels.env is dev" } removed { node_id: "w2aaaaaaaaaaaaaaaaaaaaaaa" } }
  candidates { hostname: "w3" score: 0.75 service_tasks: 1 tasks: 4 reason: "most free" }`

func TestPlanAndExplain(t *testing.T) {
	var b bytes.Buffer
	Plan(&b, "web", from(t, &skepv1.PlanReply{}, `operations { verb: "create" text: "create web.1 on w3" } operations { verb: "create" text: "create web.2 on w3" }
		operations { verb: "stop" task_id: "taaaaaaaaaaaaaaaaaaaaaaaa" node_hostname: "w1" reason: "scaled down" } placing { `+placingText+` }`))
	b.WriteString("--- nothing\n")
	Plan(&b, "web", &skepv1.PlanReply{})
	golden.Check(t, "plan", b.String())
	b.Reset()
	Explain(&b, from(t, &skepv1.ExplainReply{}, `service { spec { name: "web" mode { replicated { replicas: 3 } } } status { running: 1 desired: 3 } update_status { state: "rollback_started" message: "task x failed" } }
		placing { `+placingText+` } waiting { name: "web.2" status { state: TASK_STATE_PENDING err: "no suitable node" } } waiting { name: "web.3" node_hostname: "w1" status { state: TASK_STATE_PREPARING message: "pulling" } }
		next { verb: "place" text: "place web.2 on w3" } hints: "None of the tasks has passed its checks."`), now)
	b.WriteString("--- at rest\n")
	Explain(&b, from(t, &skepv1.ExplainReply{}, `service { spec { name: "web" mode { global {} } } status { running: 1 desired: 1 } }`), now)
	b.WriteString("--- rejected again and again\n")
	r := from(t, &skepv1.ExplainReply{}, `service { spec { name: "web" mode { replicated { replicas: 1 } } } status { desired: 1 crash_looping: 1 loop { failures: 4 err: "no such image: web:nine" } } }
		waiting { name: "web.1" failures: 4 status { state: TASK_STATE_PENDING err: "no such image: web:nine" } }`)
	r.Service.Status.Loop.NextUnixMs, r.Waiting[0].NotBeforeUnixMs = now.Add(20*time.Second).UnixMilli(), now.Add(20*time.Second).UnixMilli()
	Explain(&b, r, now)
	golden.Check(t, "explain", b.String())
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "Less than a second", time.Second: "1 second", 59 * time.Second: "59 seconds", time.Minute: "About a minute", 3 * time.Minute: "3 minutes", 59 * time.Minute: "59 minutes",
		time.Hour: "About an hour", 47 * time.Hour: "47 hours", 48 * time.Hour: "2 days", 14 * 24 * time.Hour: "2 weeks", 60 * 24 * time.Hour: "2 months", 800 * 24 * time.Hour: "2 years", -time.Second: "Less than a second",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestNaturalLess(t *testing.T) {
	in := []string{"a", "a1", "a2", "a10", "a10b", "b", "b.1", "b.2", "b.10"}
	for i := range in {
		for j := range in {
			if got := NaturalLess(in[i], in[j]); got != (i < j) {
				t.Errorf("NaturalLess(%s, %s) = %t", in[i], in[j], got)
			}
		}
	}
}

func TestImage(t *testing.T) {
	for in, want := range map[string]string{
		"httpd": "httpd", "httpd:2@sha256:a": "httpd:2", "docker.io/library/httpd:2": "httpd:2", "a.b:5000/x@sha256:a": "a.b:5000/x@sha256:a", "a.b:5000/x:1@sha256:a": "a.b:5000/x:1",
	} {
		if got := Image(in); got != want {
			t.Errorf("Image(%s) = %s, want %s", in, got, want)
		}
	}
}

package specflag

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

var testEnv = map[string]string{"HOME": "/home/me", "TOKEN": "t0k"}

func lookup(k string) (string, bool) { v, ok := testEnv[k]; return v, ok }

// create runs the flags of `service create` on an image called img.
func create(args ...string) (*skepv1.ServiceSpec, error) {
	fs := pflag.NewFlagSet("create", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	f := Create(fs)
	f.LookupEnv = lookup
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	rest := fs.Args()
	if len(rest) == 0 {
		rest = []string{"img"}
	}
	return f.Spec(rest[0], rest[1:])
}

func parse(t *testing.T, text string) *skepv1.ServiceSpec {
	t.Helper()
	s := &skepv1.ServiceSpec{}
	if err := prototext.Unmarshal([]byte(text), s); err != nil {
		t.Fatalf("the expected spec %s: %v", text, err)
	}
	return s
}

func same(t *testing.T, got, want *skepv1.ServiceSpec) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", prototext.Format(got), prototext.Format(want))
	}
}

// portRangeText are n ports in a row.
func portRangeText(published, target, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `ports { protocol: "tcp" target_port: %d published_port: %d } `, target+i, published+i)
	}
	return b.String()
}

func TestCreate(t *testing.T) {
	const replicated = `mode { replicated { replicas: 1 } } `
	// container, task and service wrap a part in what every service has.
	container := func(s string) string {
		return replicated + `task { container { image: "img" ` + s + ` } }`
	}
	task := func(s string) string { return replicated + `task { container { image: "img" } ` + s + ` }` }
	service := func(s string) string { return replicated + task("")[len(replicated):] + s }
	sec := func(n string) string { return `{ seconds: ` + n + ` }` }
	up := func(s string) string { return s }

	env := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(env, []byte("# comment\nA=1\nTOKEN\nUNSET\n  B=two words\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, container("")},
		{[]string{"--name", "web", "img"}, `name: "web" ` + container("")},
		{[]string{"img", "sleep", "--name", "-x"}, container(`args: ["sleep", "--name", "-x"]`)},
		{[]string{"--replicas=3"}, `mode { replicated { replicas: 3 } } ` + container("")[len(replicated):]},
		{[]string{"--replicas=0"}, `mode { replicated { } } ` + container("")[len(replicated):]},
		{[]string{"--mode", "global"}, `mode { global {} } ` + container("")[len(replicated):]},
		{[]string{"--mode", "replicated-job", "--replicas", "5"}, `mode { replicated_job { max_concurrent: 5 total_completions: 5 } } ` + container("")[len(replicated):]},
		{[]string{"--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2"}, `mode { replicated_job { max_concurrent: 2 total_completions: 5 } } ` + container("")[len(replicated):]},
		{[]string{"--mode", "global-job"}, `mode { global_job {} } ` + container("")[len(replicated):]},
		{[]string{"--volume-pin"}, task(`placement { volume_pin: true }`)},
		{[]string{"--replicas-max-per-node", "2"}, task(`placement { max_replicas_per_node: 2 }`)},
		{[]string{"--entrypoint", `/bin/sh -c "echo hi"`}, container(`command: ["/bin/sh", "-c", "echo hi"]`)},
		{[]string{"-w", "/srv", "-u", "web:www", "--group", "a", "--group", "b"}, container(`dir: "/srv" user: "web:www" groups: ["a", "b"]`)},
		{[]string{"-e", "A=1", "-e", "B=x=y", "-e", "HOME", "-e", "UNSET", "-e", "A=2"}, container(`env: ["A=2", "B=x=y", "HOME=/home/me"]`)},
		{[]string{"--env-file", env, "-e", "A=over"}, container(`env: ["A=over", "TOKEN=t0k", "B=two words"]`)},
		{[]string{"-l", "a=b", "--label", "c"}, service(` labels { key: "a" value: "b" } labels { key: "c" value: "" }`)},
		{[]string{"--container-label", "a=b=c"}, container(`labels { key: "a" value: "b=c" }`)},
		{[]string{"--hostname", "{{.Node.Hostname}}", "--init", "-t", "--read-only"}, container(`hostname: "{{.Node.Hostname}}" init: true tty: true read_only: true`)},
		{[]string{"--init=false"}, container(`init: false`)},
		{[]string{"--stop-signal", "QUIT", "--stop-grace-period", "1m30s"}, container(`stop_signal: "QUIT" stop_grace_period ` + sec("90"))},
		{[]string{"--isolation", "hyperv", "--credential-spec", "file://x.json"}, container(`isolation: "hyperv" privileges { credential_spec: "file://x.json" }`)},
		{[]string{"--cap-add", "net_admin", "--cap-add", "CAP_SYS_TIME", "--cap-drop", "all", "--cap-drop", "NET_ADMIN"}, container(`capability_add: ["CAP_NET_ADMIN", "CAP_SYS_TIME"] capability_drop: "ALL"`)},
		{[]string{"--cap-add", "ALL", "--cap-add", "chown", "--cap-drop", "mknod"}, container(`capability_add: "ALL" capability_drop: "CAP_MKNOD"`)},
		{[]string{"--cap-add", "chown", "--cap-drop", "chown"}, container(`capability_add: "CAP_CHOWN"`)},
		{[]string{"--sysctl", "net.core.somaxconn=1024"}, container(`sysctls { key: "net.core.somaxconn" value: "1024" }`)},
		{[]string{"--ulimit", "nofile=1024:2048", "--ulimit", "nproc=5", "--ulimit", "core=-1"},
			container(`ulimits { name: "nofile" soft: 1024 hard: 2048 } ulimits { name: "nproc" soft: 5 hard: 5 } ulimits { name: "core" soft: -1 hard: -1 }`)},
		{[]string{"--oom-score-adj", "-500"}, container(`oom_score_adj: -500`)},
		{[]string{"--limit-cpu", "0.5", "--limit-memory", "64m", "--limit-pids", "100"}, task(`resources { limits { nano_cpus: 500000000 memory_bytes: 67108864 pids: 100 } }`)},
		{[]string{"--reserve-cpu", "2", "--reserve-memory", "1.5GiB"}, task(`resources { reservations { nano_cpus: 2000000000 memory_bytes: 1610612736 } }`)},
		{[]string{"--limit-memory", "64m", "--memory-swap", "-1", "--memory-swappiness", "0"}, task(`resources { limits { memory_bytes: 67108864 } swap_bytes: -1 memory_swappiness: 0 }`)},
		{[]string{"--generic-resource", "GPU=2", "--generic-resource", "SSD=1"}, task(`resources { reservations { generic { kind: "GPU" value: 2 } generic { kind: "SSD" value: 1 } } }`)},
		{[]string{"--constraint", "node.role==worker", "--constraint", "node.labels.a != b", "--placement-pref", "spread=node.labels.rack"},
			task(`placement { constraints: ["node.role==worker", "node.labels.a != b"] preferences { spread: "node.labels.rack" } }`)},
		{[]string{"--restart-max-attempts", "3"}, task(`restart { condition: RESTART_CONDITION_ANY delay ` + sec("5") + ` max_attempts: 3 }`)},
		{[]string{"--restart-condition", "on-failure", "--restart-delay", "0s", "--restart-window", "1m"}, task(`restart { condition: RESTART_CONDITION_ON_FAILURE delay {} window ` + sec("60") + ` }`)},
		{[]string{"--update-parallelism", "0"}, service(up(`update { delay {} monitor ` + sec("5") + ` failure_action: FAILURE_ACTION_PAUSE order: UPDATE_ORDER_STOP_FIRST }`))},
		{[]string{"--update-delay", "1m", "--update-monitor", "1s", "--update-failure-action", "rollback", "--update-max-failure-ratio", ".25", "--update-order", "start-first"},
			service(`update { parallelism: 1 delay ` + sec("60") + ` monitor ` + sec("1") + ` failure_action: FAILURE_ACTION_ROLLBACK max_failure_ratio: 0.25 order: UPDATE_ORDER_START_FIRST }`)},
		{[]string{"--rollback-parallelism", "2", "--rollback-failure-action", "continue", "--rollback-delay", "1s", "--rollback-monitor", "2s", "--rollback-max-failure-ratio", "1", "--rollback-order", "start-first"},
			service(`rollback { parallelism: 2 delay ` + sec("1") + ` monitor ` + sec("2") + ` failure_action: FAILURE_ACTION_CONTINUE max_failure_ratio: 1 order: UPDATE_ORDER_START_FIRST }`)},
		{[]string{"--endpoint-mode", "dnsrr"}, service(`endpoint { mode: MODE_DNSRR }`)},
		{[]string{"--dns-starting"}, service(`endpoint { dns_starting: true }`)},
		{[]string{"--dns-starting=false"}, service(``)},
		{[]string{"-p", "8080:80"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`)},
		{[]string{"-p", "53:53/udp", "-p", "80"}, service(`endpoint { ports { protocol: "udp" target_port: 53 published_port: 53 } ports { protocol: "tcp" target_port: 80 } }`)},
		{[]string{"-p", "8000-8001:80-81"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8000 } ports { protocol: "tcp" target_port: 81 published_port: 8001 } }`)},
		{[]string{"-p", "8000-8001:80"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8000 } ports { protocol: "tcp" target_port: 80 published_port: 8001 } }`)},
		{[]string{"-p", "published=8080,target=80,protocol=sctp,mode=host"}, service(`endpoint { ports { protocol: "sctp" target_port: 80 published_port: 8080 publish_mode: PUBLISH_MODE_HOST } }`)},
		{[]string{"-p", "8080-8090:80-90"}, service(`endpoint { ` + portRangeText(8080, 80, 11) + ` }`)},
		{[]string{"-p", "80-81"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 } ports { protocol: "tcp" target_port: 81 } }`)},
		{[]string{"-p", "5000:5000/tcp", "-p", "5000:5000/udp", "-p", "5000:5000/sctp"},
			service(`endpoint { ports { protocol: "tcp" target_port: 5000 published_port: 5000 } ports { protocol: "udp" target_port: 5000 published_port: 5000 } ports { protocol: "sctp" target_port: 5000 published_port: 5000 } }`)},
		{[]string{"-p", "0:80"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 } }`)},
		{[]string{"-p", "65535:65535"}, service(`endpoint { ports { protocol: "tcp" target_port: 65535 published_port: 65535 } }`)},
		{[]string{"-p", "target=80,published=0"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 } }`)},
		{[]string{"-p", "80", "-p", "80"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 } ports { protocol: "tcp" target_port: 80 } }`)},
		{[]string{"--endpoint-mode", "vip", "-p", "target=80,published=8080"}, service(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`)},
		{[]string{"--endpoint-mode", "dnsrr", "-p", "target=80,mode=host"}, service(`endpoint { mode: MODE_DNSRR ports { protocol: "tcp" target_port: 80 publish_mode: PUBLISH_MODE_HOST } }`)},
		{[]string{"--network", "back", "--network", "name=front,alias=www,alias=web,driver-opt=a=b"},
			task(`networks { target: "back" } networks { target: "front" aliases: ["www", "web"] driver_opts { key: "a" value: "b" } }`)},
		{[]string{"--dns", "1.1.1.1", "--dns-option", "ndots:1", "--dns-search", "example.com"}, container(`dns { nameservers: "1.1.1.1" options: "ndots:1" search: "example.com" }`)},
		{[]string{"--host", "db:10.0.0.1", "--host", "v6:fe80::1"}, container(`hosts: ["10.0.0.1 db", "fe80::1 v6"]`)},
		{[]string{"--mount", "type=bind,source=/a,destination=/b,readonly,bind-propagation=rshared"},
			container(`mounts { type: TYPE_BIND source: "/a" target: "/b" read_only: true bind_propagation: "rshared" }`)},
		{[]string{"--mount", "src=data,dst=/d,volume-driver=rexray,volume-label=a=b,volume-opt=size=1,volume-nocopy,volume-subpath=x"},
			container(`mounts { source: "data" target: "/d" volume_driver: "rexray" volume_labels { key: "a" value: "b" } volume_opts { key: "size" value: "1" } volume_nocopy: true volume_subpath: "x" }`)},
		{[]string{"--mount", `type=volume,target=/d,"volume-opt=o=uid=1,gid=2",ro=false`}, container(`mounts { target: "/d" volume_opts { key: "o" value: "uid=1,gid=2" } }`)},
		{[]string{"--mount", "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770"}, container(`mounts { type: TYPE_TMPFS target: "/t" tmpfs_size: 1048576 tmpfs_mode: 1016 }`)},
		{[]string{"--mount", "type=bind,src=/a,target=/b,bind-recursive=disabled,bind-create-src"}, container(`mounts { type: TYPE_BIND source: "/a" target: "/b" bind_recursive: "disabled" bind_create_src: true }`)},
		{[]string{"--mount", "source=v,target=/b,volume-sharing=none"}, container(`mounts { source: "v" target: "/b" volume_sharing: "none" }`)},
		{[]string{"--mount", "type=bind,src=/a,target=/b,bind-wait"}, container(`mounts { type: TYPE_BIND source: "/a" target: "/b" bind_wait: true }`)},
		{[]string{"--mount", "type=image,source=i,target=/i,image-subpath=s"}, container(`mounts { type: TYPE_IMAGE source: "i" target: "/i" image_subpath: "s" }`)},
		{[]string{"--mount", "type=cluster,source=c,target=/c,consistency=cached"}, container(`mounts { type: TYPE_CLUSTER source: "c" target: "/c" consistency: "cached" }`)},
		{[]string{"--secret", "pw", "--secret", "source=key,target=/k,uid=1,gid=2,mode=0400"},
			container(`secrets { name: "pw" target: "pw" uid: "0" gid: "0" mode: 292 } secrets { name: "key" target: "/k" uid: "1" gid: "2" mode: 256 }`)},
		{[]string{"--secret", "pw@3", "--secret", "source=pw,target=new", "--config", "src=c@18446744073709551615,mode=0"},
			container(`secrets { name: "pw" target: "pw" uid: "0" gid: "0" mode: 292 version: 3 pinned: true } secrets { name: "pw" target: "new" uid: "0" gid: "0" mode: 292 } configs { name: "c" target: "c" uid: "0" gid: "0" version: 18446744073709551615 pinned: true }`)},
		{[]string{"--secret-update-signal", "SIGHUP", "--config-update-signal", "10"}, container(`secret_update_signal: "SIGHUP" config_update_signal: "10"`)},
		{[]string{"--config", "src=c,target=/etc/c"}, container(`configs { name: "c" target: "/etc/c" uid: "0" gid: "0" mode: 292 }`)},
		{[]string{"--health-cmd", "curl -f localhost", "--health-interval", "5s", "--health-timeout", "2s", "--health-retries", "2", "--health-start-period", "1m", "--health-start-interval", "1s"},
			container(`health { test: ["CMD-SHELL", "curl -f localhost"] interval ` + sec("5") + ` timeout ` + sec("2") + ` retries: 2 start_period ` + sec("60") + ` start_interval ` + sec("1") + ` }`)},
		{[]string{"--no-healthcheck"}, container(`health { test: "NONE" }`)},
		{[]string{"--health-http", ":8080/healthz?full=1", "--health-retries", "1"}, container(`health { http { port: 8080 path: "/healthz?full=1" } retries: 1 }`)},
		{[]string{"--health-http", "80"}, container(`health { http { port: 80 path: "/" } }`)},
		{[]string{"--health-tcp", "5432"}, container(`health { tcp_port: 5432 }`)},
		{[]string{"--health-grpc", "9000/shop.v1.Cart", "--ready-grpc", ":9000"}, container(`health { grpc { port: 9000 service: "shop.v1.Cart" } } ready { grpc { port: 9000 } }`)},
		{[]string{"--ready-http", ":80/ready", "--ready-interval", "1s", "--ready-timeout", "500ms", "--ready-retries", "3"},
			container(`ready { http { port: 80 path: "/ready" } interval ` + sec("1") + ` timeout { nanos: 500000000 } retries: 3 }`)},
		{[]string{"--ready-cmd", "test -e /ready", "--no-healthcheck"}, container(`ready { test: ["CMD-SHELL", "test -e /ready"] } health { test: "NONE" }`)},
		{[]string{"--ready-tcp", "80"}, container(`ready { tcp_port: 80 }`)},
		{[]string{"--log-driver", "local", "--log-opt", "max-size=10m"}, task(`log_driver { name: "local" options { key: "max-size" value: "10m" } }`)},
		{[]string{"--restart-backoff", "2m"}, task(`restart { condition: RESTART_CONDITION_ANY delay ` + sec("5") + ` max_delay ` + sec("120") + ` }`)},
		{[]string{"--restart-backoff", "0"}, task(`restart { condition: RESTART_CONDITION_ANY delay ` + sec("5") + ` max_delay {} }`)},
		{[]string{"--health-budget", "3"}, service(`health_budget: 3`)},
		{[]string{"--on-partition", "stop"}, service(`on_partition: PARTITION_POLICY_STOP`)},
		{[]string{"--with-registry-auth", "--no-resolve-image"}, container("")},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			got, err := create(c.args...)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, parse(t, c.want))
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--mode", "x"}, "unknown mode: x"},
		{[]string{"--mode", "global", "--replicas", "2"}, "replicas can only be used with replicated or replicated-job mode"},
		{[]string{"--mode", "global", "--replicas-max-per-node", "2"}, "replicas-max-per-node can only be used with replicated or replicated-job mode"},
		{[]string{"--max-concurrent", "2"}, "max-concurrent can only be used with replicated-job mode"},
		{[]string{"--mode", "global-job", "--update-delay", "1s"}, "update and rollback configuration is not supported for jobs"},
		{[]string{"--replicas", "-1"}, "not a whole number of 0 or more"},
		{[]string{"--label", "=x"}, "invalid label '=x': empty name"},
		{[]string{"--label", "a b=x"}, "label 'a b' contains whitespaces"},
		{[]string{"--env", "=x"}, "invalid environment variable: =x"},
		{[]string{"--env-file", "/nonexistent"}, "read --env-file"},
		{[]string{"--limit-cpu", "0.0000000001"}, "value is too precise"},
		{[]string{"--limit-cpu", "x"}, "failed to parse x as a rational number"},
		{[]string{"--limit-memory", "12x"}, "invalid size: '12x'"},
		{[]string{"--limit-memory", "-1"}, "invalid size: '-1'"},
		{[]string{"--memory-swappiness", "101"}, "out of range"},
		{[]string{"--oom-score-adj", "1001"}, "out of range"},
		{[]string{"--restart-condition", "always"}, `invalid RestartCondition: "always"`},
		{[]string{"--restart-delay", "-1s"}, "restart-delay cannot be negative"},
		{[]string{"--restart-backoff", "-1s"}, "restart-backoff cannot be negative"},
		{[]string{"--health-budget", "-1"}, "not a whole number"},
		{[]string{"--health-budget", "1000001"}, "health-budget 1000001 is above 1000000"},
		{[]string{"--restart-delay", "5"}, "is not a duration"},
		{[]string{"--update-delay", "-1s"}, "update-delay cannot be negative"},
		{[]string{"--update-failure-action", "stop"}, `unrecognized update failure action "stop"`},
		{[]string{"--rollback-failure-action", "rollback"}, `unrecognized rollback failure action "rollback"`},
		{[]string{"--update-max-failure-ratio", "1.5"}, "update-maxfailureratio cannot be less than 0 or bigger than 1"},
		{[]string{"--update-order", "x"}, `unrecognized update order "x"`},
		{[]string{"--endpoint-mode", "x"}, `invalid endpoint mode "x"`},
		{[]string{"--endpoint-mode", "dnsrr", "-p", "80:80"}, "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"},
		{[]string{"-p", "80:80", "-p", "80:81"}, "EndpointSpec: duplicate published ports provided"},
		{[]string{"-p", "80:80", "-p", "80:80"}, "EndpointSpec: duplicate published ports provided"},
		{[]string{"-p", "80:80", "-p", "target=80,published=80,mode=host"}, "EndpointSpec: duplicate published ports provided"},
		{[]string{"-p", "80-82:80-82", "-p", "82:9"}, "EndpointSpec: duplicate published ports provided"},
		{[]string{"-p", "65536:80"}, "invalid hostPort: 65536"},
		{[]string{"-p", "80:65536"}, "invalid containerPort: 65536"},
		{[]string{"-p", "80:0"}, "invalid containerPort: 0"},
		{[]string{"-p", "0"}, "invalid containerPort: 0"},
		{[]string{"-p", "0-2:80-82"}, "invalid hostPort: 0-2"},
		{[]string{"-p", "65535-65536:80-81"}, "invalid hostPort: 65535-65536"},
		{[]string{"-p", "80:80-81"}, "invalid ranges specified for container and host Ports: 80-81 and 80"},
		{[]string{"-p", "target=65536"}, "invalid target port (65536): value must be an integer"},
		{[]string{"-p", "target=80,published=65536"}, "invalid published port (65536): value must be an integer"},
		{[]string{"-p", "target=0,published=80"}, "missing mandatory field 'target'"},
		{[]string{"-p", "target=80,protocol=icmp"}, "invalid protocol value 'icmp'"},
		{[]string{"-p", "127.0.0.1:80:80"}, "use mode=host,host_ip=127.0.0.1,published=80,target=80"},
		{[]string{"-p", "80:80/icmp"}, "invalid protocol value 'icmp'"},
		{[]string{"-p", "99999:80"}, "invalid hostPort: 99999"},
		{[]string{"-p", "80:"}, "no port specified: 80:<empty>"},
		{[]string{"-p", "80-82:80-81"}, "invalid ranges specified for container and host Ports: 80-81 and 80-82"},
		{[]string{"-p", "82-80:80"}, "the range ends before it begins"},
		{[]string{"-p", "published=80"}, "missing mandatory field 'target'"},
		{[]string{"-p", "target=80,mode=x"}, "invalid publish mode value (x): must be either 'ingress' or 'host'"},
		{[]string{"-p", "target=80,foo=x"}, "invalid field key: foo"},
		{[]string{"-p", "target=x"}, "invalid target port (x)"},
		{[]string{"--network", "ingress"}, "Service cannot be explicitly attached to the ingress network"},
		{[]string{"--network", "a", "--network", "a"}, "service is already attached to network a"},
		{[]string{"--network", "name=a,foo=b"}, "invalid field key foo"},
		{[]string{"--network", "alias=b"}, "network name/id is not specified"},
		{[]string{"--network", "name=a,driver-opt=x"}, "invalid key value pair format in driver options"},
		{[]string{"--network", "name=ingress"}, "Service cannot be explicitly attached to the ingress network"},
		{[]string{"--dns", "1.1.1"}, "IP address is not correctly formatted: 1.1.1"},
		{[]string{"--dns-search", "-x"}, "-x is not a valid domain"},
		{[]string{"--host", "db"}, "bad format for add-host"},
		{[]string{"--host", "db:x"}, `invalid IP address in add-host: "x"`},
		{[]string{"--mount", "source=v,target=/a,volume-sharing=few"}, "must be none, onewriter or all"},
		{[]string{"--mount", "type=bind,source=/v,target=/a,volume-sharing=all"}, "cannot mix 'volume-sharing' with mount type 'bind'"},
		{[]string{"--mount", "source=v,target=/a,bind-wait"}, "cannot mix 'bind-wait' with mount type 'volume'"},
		{[]string{"--mount", "type=x,target=/a"}, "invalid value for type: x"},
		{[]string{"--mount", "target"}, "invalid field 'target' must be a key=value pair"},
		{[]string{"--mount", "foo=bar,target=/a"}, "unknown option 'foo' in 'foo=bar'"},
		{[]string{"--mount", "type=bind,source=/a"}, "target is required"},
		{[]string{"--mount", "type=bind,target=/a,bind-nonrecursive"}, "unknown option 'bind-nonrecursive'"},
		{[]string{"--mount", "type=bind,target=/a,bind-nonrecursive=true"}, "bind-nonrecursive is deprecated"},
		{[]string{"--mount", "type=bind,target=/a,bind-propagation=x"}, "invalid value for bind-propagation: x"},
		{[]string{"--mount", "type=bind,target=/a,readonly=x"}, "invalid value for readonly: x"},
		{[]string{"--mount", "type=tmpfs,target=/a,tmpfs-size=x"}, "invalid value for tmpfs-size: x"},
		{[]string{"--mount", "type=tmpfs,target=/a,tmpfs-mode=9"}, "invalid value for tmpfs-mode: 9"},
		{[]string{"--mount", "type=bind,target=/a,volume-driver=x"}, "cannot mix 'volume-driver' with mount type 'bind'"},
		{[]string{"--mount", "target=/a", "--mount", "target=/a"}, "ContainerSpec: duplicate mount point: /a"},
		{[]string{"--secret", "target=x"}, "source is required"},
		{[]string{"--secret", "a@0"}, `invalid version "0" of a: write it as a@3`},
		{[]string{"--secret", "a@"}, `invalid version "" of a: write it as a@3`},
		{[]string{"--config", "source=a@-1"}, `invalid version "-1" of a: write it as a@3`},
		{[]string{"--config", "a@1@2"}, `invalid version "1@2" of a: write it as a@3`},
		{[]string{"--secret", "a@18446744073709551616"}, "invalid version"},
		{[]string{"--secret", "@3"}, "source is required"},
		{[]string{"--secret", "source=a,mode=rw"}, "write it in octal"},
		{[]string{"--secret", "source=a,version=3"}, "invalid field in secret or config request: version"},
		{[]string{"--secret", "pw@3", "--secret", "pw"}, "duplicate secret target for pw not allowed"},
		{[]string{"--secret", "a", "--secret", "source=b,target=a"}, "duplicate secret target for b not allowed"},
		{[]string{"--config", "source=a,mode=x"}, "invalid mode specified: x"},
		{[]string{"--ulimit", "nofile"}, "invalid ulimit argument: nofile"},
		{[]string{"--ulimit", "nofiles=1"}, "invalid ulimit type: nofiles"},
		{[]string{"--ulimit", "nofile=2:1"}, "ulimit soft limit must be less than or equal to hard limit: 2 > 1"},
		{[]string{"--sysctl", "x"}, "invalid sysctl 'x'"},
		{[]string{"--generic-resource", "GPU=uuid"}, "Named Generic Resources is not supported for service create or update"},
		{[]string{"--generic-resource", "GPU=1", "--generic-resource", "GPU=2"}, "duplicate generic-resource GPU"},
		{[]string{"--placement-pref", "pack=node.labels.a"}, "unsupported placement preference pack (only spread is supported)"},
		{[]string{"--placement-pref", "spread"}, `placement preference must be of the format "<strategy>=<arg>"`},
		{[]string{"--constraint", "node.role=worker"}, "constraint expected one operator from ==, !="},
		{[]string{"--credential-spec", "x"}, "invalid credential spec"},
		{[]string{"--no-healthcheck", "--health-cmd", "x"}, "--no-healthcheck conflicts with --health-* options"},
		{[]string{"--health-interval", "1us"}, "health-interval cannot be less than 1ms"},
		{[]string{"--health-retries", "-1"}, "out of range"},
		{[]string{"--no-healthcheck", "--health-tcp", "80"}, "--no-healthcheck conflicts with --health-* options"},
		{[]string{"--health-cmd", "true", "--health-http", "80/"}, "--health-cmd and --health-http conflict: use one of them"},
		{[]string{"--ready-tcp", "80", "--ready-grpc", "80"}, "--ready-tcp and --ready-grpc conflict: use one of them"},
		{[]string{"--health-http", ":0/x"}, "invalid health-http: port 0 is out of range: use 1 to 65535"},
		{[]string{"--health-http", "http://localhost/"}, `invalid health-http: "http:" is not a port number: use [:]port/path, as in :8080/healthz`},
		{[]string{"--ready-tcp", "65536"}, "invalid ready-tcp: port 65536 is out of range: use 1 to 65535"},
		{[]string{"--health-grpc", "x/y"}, `invalid health-grpc: "x" is not a port number: use port[/service], as in 9000/shop.v1.Cart`},
		{[]string{"--ready-interval", "1us"}, "ready-interval cannot be less than 1ms"},
		{[]string{"--ready-interval", "1s"}, "--ready-* options say how often to ask and not what"},
		{[]string{"--entrypoint", `"x`}, "unbalanced"},
		{[]string{"--on-partition", "x"}, `invalid value "x" for --on-partition`},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			_, err := create(c.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want %q in it", err, c.want)
			}
			// Errors of the flag parser are usage errors anyway; those found later must say so.
			if !strings.Contains(err.Error(), "invalid argument") && !errors.Is(err, ErrInvalid) {
				t.Errorf("%q is not ErrInvalid", err)
			}
		})
	}
}

func TestCreateHasNoUpdateFlags(t *testing.T) {
	for _, flag := range []string{"--image=x", "--args=x", "--force", "--rollback", "--env-add=a=b", "--publish-rm=80"} {
		if _, err := create(flag); err == nil {
			t.Errorf("create accepts %s", flag)
		}
	}
}

func TestSplitWords(t *testing.T) {
	for in, want := range map[string]string{
		`a b`: "a|b", ` a  b `: "a|b", `'a b' c`: "a b|c", `"a \"b\"" c`: `a "b"|c`, `a\ b`: "a b", `""`: "", `a"b"c`: "abc", `'a\b'`: `a\b`, `"a\b"`: `a\b`,
	} {
		got, err := SplitWords(in)
		if err != nil || strings.Join(got, "|") != want {
			t.Errorf("SplitWords(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{`'a`, `a\`} {
		if _, err := SplitWords(bad); err == nil {
			t.Errorf("SplitWords(%q) accepted", bad)
		}
	}
}

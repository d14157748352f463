package specflag

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	skepv1 "skep.dev/proto/skep/v1"
)

func update(s *skepv1.ServiceSpec, args ...string) error {
	fs := pflag.NewFlagSet("update", pflag.ContinueOnError)
	f := Update(fs)
	f.LookupEnv = lookup
	if err := fs.Parse(args); err != nil {
		return err
	}
	return f.Apply(s)
}

func TestUpdate(t *testing.T) {
	c := func(s string) string {
		return `mode { replicated { replicas: 1 } } task { container { image: "img" ` + s + ` } }`
	}
	k := func(s string) string {
		return `mode { replicated { replicas: 1 } } task { container { image: "img" } ` + s + ` }`
	}
	s := func(x string) string { return k("") + x }
	for _, x := range []struct {
		name   string
		before string
		args   string // split at spaces
		after  string
	}{
		{"nothing", c(`env: "A=1"`), "", c(`env: "A=1"`)},
		{"image", c(""), "--image new:2", strings.Replace(c(""), "img", "new:2", 1)},
		{"args", c(`args: "x"`), "--args a\tb", c(`args: ["a", "b"]`)},
		{"force", k(""), "--force", k("force_update: 1")},
		{"replicas", c(""), "--replicas 5", strings.Replace(c(""), "replicas: 1", "replicas: 5", 1)},
		{"max concurrent", `mode { replicated_job { max_concurrent: 2 total_completions: 4 } } task { container { image: "i" } }`, "--max-concurrent 3 --replicas 9",
			`mode { replicated_job { max_concurrent: 3 total_completions: 9 } } task { container { image: "i" } }`},
		{"env", c(`env: ["A=1", "B=2"]`), "--env-add A=3 --env-add C=4 --env-rm B", c(`env: ["A=3", "C=4"]`)},
		{"env from here", c(``), "--env-add TOKEN", c(`env: "TOKEN=t0k"`)},
		{"groups", c(`groups: ["a", "b"]`), "--group-rm a --group-add c --group-add b", c(`groups: ["b", "c"]`)},
		{"labels", s(`labels { key: "a" value: "1" } labels { key: "b" value: "2" }`), "--label-rm a --label-add b=3 --label-add c=4", s(`labels { key: "b" value: "3" } labels { key: "c" value: "4" }`)},
		{"last label", s(`labels { key: "a" value: "1" }`), "--label-rm a", s("")},
		{"container labels", c(`labels { key: "a" value: "1" }`), "--container-label-rm a --container-label-add b=2", c(`labels { key: "b" value: "2" }`)},
		{"sysctl", c(`sysctls { key: "a" value: "1" }`), "--sysctl-rm a --sysctl-add b=2", c(`sysctls { key: "b" value: "2" }`)},
		{"ulimit", c(`ulimits { name: "core" soft: 1 hard: 1 } ulimits { name: "cpu" soft: 1 hard: 1 }`), "--ulimit-rm core --ulimit-add cpu=2:3", c(`ulimits { name: "cpu" soft: 2 hard: 3 }`)},
		{"cap: drop of an added one", c(`capability_add: ["CAP_CHOWN", "CAP_KILL"]`), "--cap-drop chown", c(`capability_add: "CAP_KILL"`)},
		{"cap: drop of a default", c(``), "--cap-drop chown", c(`capability_drop: "CAP_CHOWN"`)},
		{"cap: add of a dropped one", c(`capability_drop: "CAP_CHOWN"`), "--cap-add chown", c(``)},
		{"cap: add wins", c(``), "--cap-add chown --cap-drop chown", c(`capability_add: "CAP_CHOWN"`)},
		{"cap: reset", c(`capability_add: "CAP_CHOWN" capability_drop: "CAP_KILL"`), "--cap-add RESET --cap-drop reset --cap-drop mknod", c(`capability_drop: "CAP_MKNOD"`)},
		{"hosts", c(`hosts: ["10.0.0.1 a b", "10.0.0.2 c"]`), "--host-rm a:10.0.0.1 --host-rm c --host-add d:10.0.0.3", c(`hosts: ["10.0.0.1 b", "10.0.0.3 d"]`)},
		{"dns", c(`dns { nameservers: ["2.2.2.2", "1.1.1.1"] search: "x.org" }`), "--dns-rm 1.1.1.1 --dns-add 3.3.3.3 --dns-search-rm x.org --dns-option-add ndots:1", c(`dns { nameservers: ["2.2.2.2", "3.3.3.3"] options: "ndots:1" }`)},
		{"dns gone", c(`dns { nameservers: "1.1.1.1" }`), "--dns-rm 1.1.1.1", c(``)},
		{"mounts", c(`mounts { source: "a" target: "/a" } mounts { source: "b" target: "/b" }`), "--mount-rm /a --mount-add src=c,dst=/b,ro --mount-add src=d,dst=/d",
			c(`mounts { source: "c" target: "/b" read_only: true } mounts { source: "d" target: "/d" }`)},
		{"secrets", c(`secrets { name: "a" target: "a" } secrets { name: "b" target: "b" }`), "--secret-rm a --secret-add source=b,target=bb", c(`secrets { name: "b" target: "bb" uid: "0" gid: "0" mode: 292 }`)},
		{"secrets keep their version", c(`secrets { id: "i" name: "a" target: "a" version: 2 pinned: true }`), "--env-add x=y", c(`secrets { id: "i" name: "a" target: "a" version: 2 pinned: true } env: "x=y"`)},
		{"secrets unpinned", c(`secrets { id: "i" name: "a" target: "a" version: 2 pinned: true }`), "--secret-add a", c(`secrets { name: "a" target: "a" uid: "0" gid: "0" mode: 292 }`)},
		{"secrets beside one another", c(`secrets { id: "i" name: "a" target: "a" version: 2 }`), "--secret-add source=a@2,target=old --secret-add a",
			c(`secrets { name: "a" target: "old" uid: "0" gid: "0" mode: 292 version: 2 pinned: true } secrets { name: "a" target: "a" uid: "0" gid: "0" mode: 292 }`)},
		{"signals", c(`secret_update_signal: "SIGHUP" config_update_signal: "SIGHUP"`), "--secret-update-signal SIGUSR1", c(`secret_update_signal: "SIGUSR1" config_update_signal: "SIGHUP"`)},
		{"configs", c(`configs { name: "a" target: "a" }`), "--config-rm a --config-add c", c(`configs { name: "c" target: "c" uid: "0" gid: "0" mode: 292 }`)},
		{"limits keep the rest", k(`resources { limits { memory_bytes: 67108864 } reservations { nano_cpus: 5 } }`), "--limit-cpu 1", k(`resources { limits { memory_bytes: 67108864 nano_cpus: 1000000000 } reservations { nano_cpus: 5 } }`)},
		{"swappiness off", k(`resources { memory_swappiness: 5 }`), "--memory-swappiness -1", k(`resources { }`)},
		{"generic", k(`resources { reservations { generic { kind: "GPU" value: 1 } generic { kind: "SSD" value: 1 } } }`), "--generic-resource-rm GPU --generic-resource-add SSD=2",
			k(`resources { reservations { generic { kind: "SSD" value: 2 } } }`)},
		{"restart backoff", k(`restart { condition: RESTART_CONDITION_NONE delay { seconds: 9 } }`), "--restart-backoff 0", k(`restart { condition: RESTART_CONDITION_NONE delay { seconds: 9 } max_delay {} }`)},
		{"restart", k(`restart { condition: RESTART_CONDITION_NONE delay { seconds: 9 } }`), "--restart-max-attempts 2", k(`restart { condition: RESTART_CONDITION_NONE delay { seconds: 9 } max_attempts: 2 }`)},
		{"constraint", k(`placement { constraints: "node.labels.env==test" }`), "--constraint-rm node.labels.env==test --constraint-add node.labels.env==prod", k(`placement { constraints: "node.labels.env==prod" }`)},
		{"constraint, other spaces", k(`placement { constraints: "node.labels.env == test" }`), "--constraint-rm node.labels.env==test", k(`placement { }`)},
		{"constraint twice", k(`placement { constraints: "a==b" }`), "--constraint-add a==b", k(`placement { constraints: "a==b" }`)},
		{"pin", k(`placement { }`), "--volume-pin", k(`placement { volume_pin: true }`)},
		{"no pin", k(`placement { volume_pin: true }`), "--volume-pin=false", k(`placement { }`)},
		{"preferences", k(`placement { preferences { spread: "node.labels.a" } }`), "--placement-pref-rm spread=node.labels.a --placement-pref-add spread=node.labels.b --replicas-max-per-node 3",
			k(`placement { preferences { spread: "node.labels.b" } max_replicas_per_node: 3 }`)},
		{"networks", k(`networks { target: "a" } networks { target: "b" }`), "--network-rm a --network-add name=c,alias=x", k(`networks { target: "b" } networks { target: "c" aliases: "x" }`)},
		{"publish", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`), "--publish-add 8081:81", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "tcp" target_port: 81 published_port: 8081 } }`)},
		{"publish the same", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`), "--publish-add 8080:80", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`)},
		{"unpublish", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "udp" target_port: 80 published_port: 8080 } }`), "--publish-rm 80",
			s(`endpoint { ports { protocol: "udp" target_port: 80 published_port: 8080 } }`)},
		{"move a port", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`), "--publish-rm 80 --publish-add 9090:80", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 9090 } }`)},
		{"unpublish a range", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "tcp" target_port: 81 published_port: 8081 } ports { protocol: "tcp" target_port: 82 published_port: 8082 } }`), "--publish-rm 80-81",
			s(`endpoint { ports { protocol: "tcp" target_port: 82 published_port: 8082 } }`)},
		{"unpublish by protocol", s(`endpoint { ports { protocol: "tcp" target_port: 53 published_port: 53 } ports { protocol: "udp" target_port: 53 published_port: 53 } }`), "--publish-rm 53/udp",
			s(`endpoint { ports { protocol: "tcp" target_port: 53 published_port: 53 } }`)},
		{"unpublish one of a target", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 } ports { protocol: "tcp" target_port: 80 published_port: 81 } }`), "--publish-rm 81:80",
			s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 } }`)},
		{"unpublish one of a target, long form", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 } ports { protocol: "tcp" target_port: 80 published_port: 81 } }`), "--publish-rm target=80,published=81",
			s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 } }`)},
		{"unpublish all of a target", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "tcp" target_port: 80 published_port: 9090 } }`), "--publish-rm 80", s(`endpoint { }`)},
		{"unpublish leaves host mode", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 } ports { protocol: "tcp" target_port: 80 published_port: 80 publish_mode: PUBLISH_MODE_HOST } }`), "--publish-rm 80",
			s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 publish_mode: PUBLISH_MODE_HOST } }`)},
		{"ports to dnsrr", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`), "--endpoint-mode dnsrr --publish-rm 80 --publish-add published=80,target=80,mode=host",
			s(`endpoint { mode: MODE_DNSRR ports { protocol: "tcp" target_port: 80 published_port: 80 publish_mode: PUBLISH_MODE_HOST } }`)},
		{"starting tasks in names", s(`endpoint { ports { protocol: "tcp" target_port: 80 } }`), "--dns-starting", s(`endpoint { ports { protocol: "tcp" target_port: 80 } dns_starting: true }`)},
		{"starting tasks in names no more", s(`endpoint { mode: MODE_DNSRR dns_starting: true }`), "--dns-starting=false", s(`endpoint { mode: MODE_DNSRR }`)},
		{"starting tasks stay in names", s(`endpoint { dns_starting: true }`), "--endpoint-mode dnsrr", s(`endpoint { mode: MODE_DNSRR dns_starting: true }`)},
		{"publish a range", s(``), "--publish-add 8080-8081:80-81", s(`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "tcp" target_port: 81 published_port: 8081 } }`)},
		{"hostname", c(``), "--hostname {{.Task.Name}}", c(`hostname: "{{.Task.Name}}"`)},
		{"unpublish host mode", s(`endpoint { ports { protocol: "tcp" target_port: 80 publish_mode: PUBLISH_MODE_HOST } }`), "--publish-rm target=80,mode=host", s(`endpoint { }`)},
		{"update config", s(`update { parallelism: 3 monitor { seconds: 1 } }`), "--update-delay 1m30s --update-parallelism 2", s(`update { parallelism: 2 delay { seconds: 90 } monitor { seconds: 1 } }`)},
		{"health", c(`health { test: "NONE" }`), "--health-cmd true", c(`health { test: ["CMD-SHELL", "true"] }`)},
		{"health keeps the command", c(`health { test: ["CMD-SHELL", "true"] }`), "--health-retries 2", c(`health { test: ["CMD-SHELL", "true"] retries: 2 }`)},
		{"no health", c(`health { test: ["CMD-SHELL", "true"] retries: 2 }`), "--no-healthcheck", c(`health { test: "NONE" }`)},
		{"health asks another way", c(`health { test: ["CMD-SHELL", "true"] retries: 2 }`), "--health-http 80/h", c(`health { http { port: 80 path: "/h" } retries: 2 }`)},
		{"health is the image's again", c(`health { http { port: 80 path: "/h" } retries: 2 }`), "--health-cmd=", c(`health { retries: 2 }`)},
		{"no health for http", c(`health { http { port: 80 path: "/h" } }`), "--no-healthcheck", c(`health { test: "NONE" }`)},
		{"readiness", c(``), "--ready-tcp 80", c(`ready { tcp_port: 80 }`)},
		{"readiness keeps what it asks", c(`ready { tcp_port: 80 }`), "--ready-retries 1", c(`ready { tcp_port: 80 retries: 1 }`)},
		{"no readiness", c(`ready { tcp_port: 80 }`), "--no-readycheck", c(``)},
		{"log driver", k(`log_driver { name: "local" }`), "--log-driver none", k(`log_driver { name: "none" }`)},
		{"switches off", c(`tty: true read_only: true`), "--tty=false --read-only=false --user root", c(`user: "root"`)},
	} {
		t.Run(x.name, func(t *testing.T) {
			got := parse(t, x.before)
			var args []string
			for _, a := range strings.Fields(strings.ReplaceAll(x.args, "\t", "\x00")) {
				args = append(args, strings.ReplaceAll(a, "\x00", " "))
			}
			if err := update(got, args...); err != nil {
				t.Fatal(err)
			}
			same(t, got, parse(t, x.after))
		})
	}
}

func TestUpdateRefuses(t *testing.T) {
	for _, x := range []struct{ before, args, want string }{
		{`mode { global {} }`, "--replicas 2", "replicas can only be used with replicated mode"},
		{`mode { global {} }`, "--replicas-max-per-node 2", "replicas-max-per-node can only be used with replicated or replicated-job mode"},
		{``, "--max-concurrent 2", "max-concurrent can only be used with replicated-job mode"},
		{`mode { global_job {} }`, "--update-parallelism 2", "update and rollback configuration is not supported for jobs"},
		{``, "--generic-resource-rm GPU", "could not find generic-resource `GPU` to remove it"},
		{`task { networks { target: "a" } }`, "--network-add a", "service is already attached to network a"},
		{``, "--mount-add target=/a --mount-add target=/a", "duplicate mount target"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`, "--endpoint-mode dnsrr", "can't be used with dnsrr mode"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`, "--publish-add 8080:81", "EndpointSpec: duplicate published ports provided"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } ports { protocol: "udp" target_port: 53 } ports { target_port: 9 published_port: 9 publish_mode: PUBLISH_MODE_HOST host_ip: "::1" } }`, "--publish-rm 9999",
			"the service does not publish 9999: it publishes 8080:80/tcp, 53/udp, mode=host,target=9,published=9,host_ip=::1"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`, "--publish-rm 8080", "no port with target 8080: to remove the one published as 8080 write --publish-rm 8080:80/tcp"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 80 publish_mode: PUBLISH_MODE_HOST } }`, "--publish-rm 80", "--publish-rm mode=host,target=80,published=80"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`, "--publish-rm 8081:80", "the service does not publish 8081:80: it publishes 8080:80/tcp"},
		{`endpoint { ports { protocol: "tcp" target_port: 80 published_port: 8080 } }`, "--publish-rm 80-81", "the service does not publish 80-81"},
		{``, "--publish-rm 80", "it publishes no port"},
		{``, "--publish-rm x", "invalid containerPort: x"},
		{``, "--network-rm a", "service is not attached to network a"},
		{``, "--network-add ingress", "Service cannot be explicitly attached to the ingress network"},
		{``, "--publish-add 80-82:80-81", "invalid ranges specified for container and host Ports: 80-81 and 80-82"},
		{``, "--publish-add 70000:80", "invalid hostPort: 70000"},
		{``, "--name x", "unknown flag: --name"},
		{``, "--mode global", "unknown flag: --mode"},
		{``, "--image=", "image reference must be provided"},
	} {
		err := update(parse(t, x.before), strings.Fields(x.args)...)
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", x.args, err, x.want)
		}
	}
}

func TestRollbackStandsAlone(t *testing.T) {
	for args, want := range map[string]string{
		"--rollback": "", "--rollback --env-add a=b": "other flags may not be combined with --rollback: --env-add",
	} {
		fs := pflag.NewFlagSet("update", pflag.ContinueOnError)
		f := Update(fs)
		if err := fs.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		err := f.RollbackAlone("detach")
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// What the cluster chose names a port as well as what the spec asked for.
func TestUnpublishAssigned(t *testing.T) {
	assigned := parse(t, `endpoint { ports { protocol: "tcp" target_port: 80 published_port: 30000 } ports { protocol: "udp" target_port: 80 published_port: 30001 } }`).Endpoint.Ports
	have := parse(t, `endpoint { ports { protocol: "tcp" target_port: 80 } ports { protocol: "udp" target_port: 80 } }`).Endpoint.Ports
	left, err := unpublish(have, []string{"30001:80/udp"}, assigned)
	if err != nil || len(left) != 1 || left[0].Protocol != "tcp" {
		t.Errorf("%v, %v", left, err)
	}
	if _, err := unpublish(left, []string{"30001:80"}, assigned); err == nil || !strings.Contains(err.Error(), "it publishes 30000:80/tcp") {
		t.Error(err)
	}
}

// Every -rm flag says what was not there, and nothing of what was.
func TestAbsent(t *testing.T) {
	f := func(args ...string) []string {
		fs := pflag.NewFlagSet("update", pflag.ContinueOnError)
		f := Update(fs)
		f.LookupEnv = lookup
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		s := parse(t, `labels { key: "l" value: "1" } task { container { env: "A=1" groups: "g" labels { key: "c" value: "" } sysctls { key: "a.b" value: "1" } ulimits { name: "core" }
			hosts: "2001:db8::1 h" dns { nameservers: "2001:db8::2" options: "ndots:1" search: "x.org" } mounts { target: "/a/" } secrets { name: "s" } configs { name: "k" } }
			placement { constraints: "node.role == worker" preferences { spread: "node.labels.z" } } }`)
		if err := f.Apply(s); err != nil {
			t.Fatal(err)
		}
		return f.Absent()
	}
	there := map[string]string{"env": "A", "label": "l", "container-label": "c", "sysctl": "a.b", "group": "g", "dns": "2001:DB8::2", "dns-option": "ndots:1", "dns-search": "x.org", "ulimit": "core",
		"host": "h:[2001:db8:0::1]", "mount": "/a", "secret": "s", "config": "k", "constraint": "node.role==worker", "placement-pref": "spread=node.labels.z"}
	var seen []string
	Update(pflag.NewFlagSet("", pflag.ContinueOnError)).fs.VisitAll(func(fl *pflag.Flag) {
		if name, is := strings.CutSuffix(fl.Name, "-rm"); is {
			seen = append(seen, name)
		}
	})
	refused := []string{"publish", "network", "generic-resource", "depends-on"}
	for _, name := range seen {
		v, ok := there[name]
		if !ok && !slices.Contains(refused, name) {
			t.Errorf("--%s-rm: nobody says what was not there", name)
		}
		if !ok {
			continue
		}
		if got := f("--" + name + "-rm=" + v); len(got) != 0 {
			t.Errorf("--%s-rm %s: %q", name, v, got)
		}
		other := "other"
		if name == "dns" {
			other = "9.9.9.9"
		}
		// It says what is there, but no value of a variable.
		if got := f("--" + name + "-rm=" + other); len(got) != 1 || !strings.HasPrefix(got[0], "--"+name+"-rm "+other+": the service has no such ") || !regexp.MustCompile(` \(it has [^= ][^ ]*( == worker)?\); nothing was removed`).MatchString(got[0]) || strings.Contains(got[0], "A=1") {
			t.Errorf("--%s-rm %s: %q", name, other, got)
		}
	}
}

package compose

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What Swarm makes of a model, by the numbers of the survey; and what Docker passes over and skep does.
func TestRulesOfAStack(t *testing.T) {
	for _, f := range []form{
		{name: "1 undefined network", text: svc("networks: [bakc]") + "networks: {back: }\n", err: []string{"stdin:4:16: services.web.networks.bakc: there is no network bakc at the top of the files: did you mean back?"}},
		{name: "1 undefined secret and config", text: svc("secrets: [a]", "configs: [b]"), err: []string{"services.web.secrets.0: there is no secret a", "services.web.configs.0: there is no config b"}},
		{name: "1 cycle", text: "services:\n  a: {image: 'i:1', depends_on: [b]}\n  b: {image: 'i:1', depends_on: [c]}\n  c: {image: 'i:1', depends_on: [a]}\n", err: []string{"stdin:2:21: services.a.depends_on: the services wait for each other: a → b → c → a"}},
		{name: "1 itself", text: svc("depends_on: [web]"), err: []string{"the services wait for each other: web → web"}},
		{name: "2 nothing is dropped", text: svc("privileged: true", "devices: [/dev/x]", "userns_mode: host", "domainname: d", "ipc: host"), err: []string{
			"stdin:4:5: services.web.privileged: no container has its node's rights", "services.web.devices", "services.web.userns_mode", "services.web.domainname", "services.web.ipc"}},
		{name: "2 what changes nothing needs no line", text: svc("privileged: false", "devices: []", "links: []"), want: []string{"no:no effect"}},
		{name: "3 project name and interpolation", text: svc("hostname: ${COMPOSE_PROJECT_NAME}"), want: []string{`"hostname":"s"`, "no:not set"}},
		{name: "3 given names are not prefixed", text: svc("networks: [n]", "volumes: ['vol:/x']", "secrets: [pw]") + "networks: {n: {name: net}}\nvolumes: {vol: {name: '{{.Task.Slot}}-x'}}\nsecrets: {pw: {name: top, environment: PW}}\n", env: []string{"PW=v"},
			want: []string{`"target":"net"`, `"source":"{{.Task.Slot}}-x"`, `"name":"top","target":"pw"`}},
		{name: "3 the name at the top", text: "name: other\n" + svc("networks: [n]") + "networks: {n: {name: other_n}}\n", want: []string{`"target":"s_n"`, "note:stdin:1:1: name: it has no effect: the stack has the name"}},
		{name: "4 default network", text: "services: {a: {image: 'i:1'}, b: {image: 'i:1', networks: [x]}}\nnetworks: {x: , unused: }\n", want: []string{`"networks":[{"aliases":["a"],"target":"s_default"}]`, `"name":"s_default"`, "no:s_unused", "note:stdin:2:17: networks.unused: no service uses it"}},
		{name: "4 no default without use", text: svc("networks: [x]") + "networks: {x: }\n", want: []string{"no:s_default"}},
		{name: "4 default redeclared", text: svc() + "networks: {default: {attachable: true, driver_opts: {encrypted: ''}}}\n", want: []string{`"attachable":true`, `"name":"s_default"`}},
		{name: "4 default is external", text: svc() + "networks: {default: {external: true, name: shared}}\n", want: []string{`"target":"shared"`, "no:s_default"}},
		{name: "5 aliases", text: svc("networks: {n: {aliases: [x, web, y]}, m: }") + "networks: {n: , m: }\n", want: []string{`{"aliases":["web","x","y"],"target":"s_n"}`, `{"aliases":["web"],"target":"s_m"}`}},
		{name: "5 no alias of the service's name", text: svc("networks: {n: {use_service_name_alias: false, aliases: [x]}}") + "networks: {n: }\n", want: []string{`{"aliases":["x"],"target":"s_n"}`}},
		{name: "6 links add no order", text: "services: {a: {image: 'i:1', links: ['b:database']}, b: {image: 'i:1'}}", want: []string{"no:dependsOn", `"aliases":["b","database"]`, "note:services.a.links.0: database is an alias of b"}},
		{name: "6 links without a network together", text: "services: {a: {image: 'i:1', links: [b], networks: [x]}, b: {image: 'i:1'}}\nnetworks: {x: }\n", err: []string{"services.a.links.0: a and b are on no network together"}},
		{name: "7 build beside image", text: svc("build: ."), want: []string{"note:stdin:4:5: services.web.build: it has no effect: a stack builds no images"}},
		{name: "7 expose", text: svc("expose: ['80']"), want: []string{"note:services.web.expose"}},
		{name: "10 env_file of a service that is off", text: "services: {a: {image: 'i:1'}, b: {image: 'i:1', profiles: [x], env_file: gone, privileged: true}}", want: []string{"no:s_b"}},
		{name: "10 profiles of the variable", text: "services: {a: {image: 'i:1', profiles: [x]}, b: {image: 'i:1', profiles: [y]}, c: {image: 'i:1', profiles: [z]}}", env: []string{"COMPOSE_PROFILES=x,z"}, want: []string{"s_a", "s_c", "no:s_b"}},
		{name: "10 all are off", text: "services: {b: {image: 'i:1', profiles: [x]}}", err: []string{"every service belongs to a profile: name one with --profile"}},
		{name: "11 labels", text: svc("labels: {a: '$$x', b: '`y`'}", "deploy: {labels: [\"r=Host(`h`)\"]}"), want: []string{`"a":"$x"`, "\"b\":\"`y`\"", "\"r\":\"Host(`h`)\""}},
		{name: "13 parallelism", text: svc("deploy: {update_config: {delay: 1s}, rollback_config: {parallelism: 0}}"), want: []string{`"update":{"delay":"1s","parallelism":"1"}`, `"rollback":{}`}},
		{name: "14 external", text: svc("networks: [n]", "secrets: [pw]", "configs: [c]") + "networks: {n: {external: true}}\nsecrets: {pw: {external: true, name: other}}\nconfigs: {c: {external: true}}\n", want: []string{`"target":"n"`, `"name":"other","target":"pw"`, `"name":"c","target":"c"`, "no:s_pw"}},
		{name: "15 volumes travel with the mount", text: svc("volumes: ['nfs:/x']") + "volumes: {nfs: {driver: local, driver_opts: {type: nfs, o: 'addr=10.0.0.1,rw', device: ':/x'}, labels: {a: b}}}\n", want: []string{
			`"volumeDriver":"local"`, `"volumeOpts":{"device":":/x","o":"addr=10.0.0.1,rw","type":"nfs"}`, `"volumeLabels":{"a":"b","com.docker.stack.namespace":"s"}`, "no:finds an empty one", `"volumes":[{"driver":"local","name":"s_nfs"}]`}},
		{name: "15 external volume", text: svc("volumes: ['vol:/x']") + "volumes: {vol: {external: true}}\n", want: []string{`"source":"vol"`, `{"external":true,"name":"vol"}`}},

		{name: "depends_on list", text: "services: {a: {image: 'i:1', depends_on: [b]}, b: {image: 'i:1'}}", want: []string{`"dependsOn":[{"condition":"CONDITION_STARTED","service":"s_b"}]`}},
		{name: "depends_on healthy", text: "services: {a: {image: 'i:1', depends_on: {b: {condition: service_healthy, restart: true}}}, b: {image: 'i:1'}}", want: []string{`"CONDITION_HEALTHY"`, "note:services.a.depends_on.b.restart: it has no effect"}},
		{name: "depends_on completed", text: "services: {a: {image: 'i:1', depends_on: {b: {condition: service_completed_successfully}}}, b: {image: 'i:1'}}", want: []string{`"CONDITION_COMPLETED"`, `"replicatedJob":{"maxConcurrent":"1","totalCompletions":"1"}`, "note:services.b: it runs as a job", `"RESTART_CONDITION_ON_FAILURE"`}},
		{name: "depends_on completed, of what never ends", text: "services: {a: {image: 'i:1', depends_on: {b: {condition: service_completed_successfully}}}, b: {image: 'i:1', deploy: {mode: global}}}", err: []string{"a waits for b to complete, which it never does"}},
		{name: "depends_on of nobody", text: svc("depends_on: [dbb]"), err: []string{"services.web.depends_on.dbb: there is no service dbb"}},
		{name: "depends_on not required", text: svc("depends_on: {dbb: {condition: service_started, required: false}}"), want: []string{"note:it is left out: the stack has no service dbb"}},
		{name: "depends_on of a profile", text: "services: {a: {image: 'i:1', depends_on: [b]}, b: {image: 'i:1', profiles: [x]}}", err: []string{"the service b belongs to a profile that is off"}},
		{name: "restart always", text: svc("restart: always"), want: []string{`"restart":{"condition":"RESTART_CONDITION_ANY"}`, "note:services.web.restart: read as deploy.restart_policy.condition: any"}},
		{name: "restart unless-stopped", text: svc("restart: unless-stopped"), want: []string{`"RESTART_CONDITION_ANY"`}},
		{name: "restart no", text: svc(`restart: "no"`), want: []string{`"RESTART_CONDITION_NONE"`, "note:condition: none"}},
		{name: "restart on-failure", text: svc("restart: on-failure:3"), want: []string{`"condition":"RESTART_CONDITION_ON_FAILURE","maxAttempts":"3"`, "note:condition: on-failure"}},
		{name: "restart beside restart_policy", text: svc("restart: always", "deploy: {restart_policy: {condition: none}}"), want: []string{`"RESTART_CONDITION_NONE"`, "note:services.web.restart: it has no effect"}},
		{name: "restart of another word", text: svc("restart: sometimes"), err: []string{"services.web.restart: unknown word"}},
		{name: "container_name", text: svc("container_name: my-web"), want: []string{`"aliases":["web","my-web"]`, "note:services.web.container_name: the container is not named so"}},
		{name: "host network", text: svc("network_mode: host"), want: []string{`"networks":[{"target":"host"}]`, "no:s_default"}},
		{name: "host network by an external one", text: svc("networks: [h]") + "networks: {h: {external: true, name: host}}\n", want: []string{`"networks":[{"target":"host"}]`}},
		{name: "network of a service", text: svc("network_mode: service:db"), err: []string{"services.web.network_mode: the network of another container cannot be shared"}},
		{name: "places of the cluster's own refusals", text: svc("hostname: 'a b'"), err: []string{"stdin:4:5: services.web.hostname: invalid hostname"}},
		{name: "place of a rule about ports", text: svc("deploy: {endpoint_mode: dnsrr}", "ports: ['80:80']"), err: []string{"stdin:5:5: services.web.ports: EndpointSpec: port published with ingress mode can't be used with dnsrr mode"}},
		{name: "place of a rule about resources", text: svc("deploy: {resources: {limits: {memory: 8M}, reservations: {memory: 9M}}}"), err: []string{"stdin:4:14: services.web.deploy.resources: reserve-memory"}},
		{name: "place of a schedule", text: svc("deploy: {mode: global-job}", "x-skep: {schedule: {cron: nonsense}}"), err: []string{"stdin:5:5: services.web.x-skep: "}},
		{name: "shm_size", text: svc("shm_size: 256m"), want: []string{`"mounts":[{"target":"/dev/shm","tmpfsSize":"268435456","type":"TYPE_TMPFS"}]`}},
		{name: "dollars that an old tool did not double", text: svc(`command: ["--option=$", "a$"]`), want: []string{`"args":["--option=$","a$"]`}},
		{name: "Y is text", text: svc("environment: {ACCEPT_EULA: Y}"), want: []string{`"ACCEPT_EULA=Y"`}},
		{name: "quotes of env files", text: svc(`environment: ["JSON={\"a\": 1}"]`), want: []string{`"JSON={\"a\": 1}"`}},
		{name: "dns", text: svc("dns: 1.1.1.1", "dns_search: [a.b]", "dns_opt: [ndots:1]"), want: []string{`"dns":{"nameservers":["1.1.1.1"],"options":["ndots:1"],"search":["a.b"]}`}},
		{name: "dns that is no address", text: svc("dns: [dns.example]"), err: []string{"IP address is not correctly formatted"}},
		{name: "ipv4_address", text: svc("networks: {n: {ipv4_address: 10.5.0.9}}") + "networks: {n: {ipam: {config: [{subnet: 10.5.0.0/24}]}}}\n", want: []string{`"ipv4Address":"10.5.0.9"`}},
		{name: "ipv4_address of two", text: svc("networks: {n: {ipv4_address: 10.5.0.9}}", "deploy: {replicas: 2}") + "networks: {n: }\n", err: []string{"services.web.networks.n.ipv4_address: one address is for one task"}},
		{name: "no tag", text: "services: {web: {image: nginx}}", want: []string{"note:stdin:1:18: services.web.image: the image has no tag but latest"}},
		{name: "digest", text: "services: {web: {image: 'nginx@sha256:" + strings.Repeat("a", 64) + "'}}", want: []string{"no:no tag"}},
		{name: "Traefik at the service", text: svc("labels: ['traefik.enable=true']"), want: []string{"note:services.web.labels: Traefik reads a service's labels"}},
		{name: "Docker socket", text: svc("volumes: ['/var/run/docker.sock:/var/run/docker.sock:ro']"), want: []string{"note:services.web.volumes.0: a program that asks the Docker socket"}},
		{name: "moving volume", text: svc("volumes: ['vol:/x']") + "volumes: {vol: }\n", want: []string{"note:the volume vol is on one node, and a task that moves finds an empty one"}},
		{name: "volume that stays", text: svc("volumes: ['vol:/x']", "x-skep: {volume_pin: true}") + "volumes: {vol: }\n", want: []string{"no:finds an empty one", `"volumePin":true`}},
		{name: "volume of a constrained task", text: svc("volumes: ['vol:/x']", "deploy: {placement: {constraints: [node.hostname == a]}}") + "volumes: {vol: }\n", want: []string{"no:finds an empty one"}},
		{name: "a port in two ranges", text: svc("ports: ['8000-8002:80', '8001:81']"), err: []string{"services.web.ports.1: the port 8001/tcp is published twice"}},
		{name: "a port of two protocols", text: svc("ports: ['53:53', '53:53/udp']"), want: []string{`"protocol":"udp"`, `"protocol":"tcp"`}},
		{name: "two services on a port", text: "services: {a: {image: 'i:1', ports: ['80:1']}, b: {image: 'i:1', ports: ['80:2']}}", err: []string{"services.b.ports: the service a publishes 80/tcp already"}},
		{name: "security_opt", text: svc("security_opt: ['no-new-privileges:true', 'seccomp:unconfined', 'apparmor=unconfined']"), want: []string{`"privileges":{"apparmorMode":"disabled","noNewPrivileges":true,"seccompMode":"unconfined"}`}},
		{name: "security_opt of SELinux", text: svc("security_opt: ['label:disable']"), err: []string{"services.web.security_opt.0: of security options there are"}},
		{name: "x-skep in the wrong place", text: svc("deploy: {x-skep: {volume_pin: true}}") + "x-skep: {}\n", err: []string{"services.web.deploy.x-skep: x-skep stands directly below a service", "x-skep: x-skep stands below"}},
		{name: "x-skep unknown key", text: svc("x-skep: {volume_pins: true}"), err: []string{"services.web.x-skep.volume_pins: unknown key"}},
		{name: "x-skep wrong type", text: svc("x-skep: {health_budget: many}"), err: []string{"services.web.x-skep: a value has the wrong type"}},
		{name: "x-skep", text: svc(`x-skep:`, `  health_budget: 2`, `  on_partition: stop`, `  update_timeout: 3m`, `  rollback_timeout: 1m`, `  restart_max_delay: 5m`, `  secret_update_signal: SIGHUP`,
			`  ready: {http: {port: 80, path: /up}, interval: 1s}`, `  health: {tcp: 80}`, `healthcheck: {interval: 7s}`), want: []string{`"healthBudget":"2"`, `"onPartition":"PARTITION_POLICY_STOP"`, `"timeout":"180s"`, `"maxDelay":"300s"`,
			`"secretUpdateSignal":"SIGHUP"`, `"ready":{"http":{"path":"/up","port":80},"interval":"1s"}`, `"health":{"interval":"7s","tcpPort":80}`}},
		{name: "x-skep: starting tasks in names", text: svc("x-skep: {dns_starting: true}"), want: []string{`"dnsStarting":true`}},
		{name: "x-skep: starting tasks in names beside ports", text: svc("ports: ['80:80']", "x-skep: {dns_starting: true}"), want: []string{`"dnsStarting":true`, `"publishedPort":80`}},
		{name: "x-skep: starting tasks on the host's network", text: svc("network_mode: host", "x-skep: {dns_starting: true}"), err: []string{"and it is on none"}},
		{name: "x-skep of a job", text: svc("deploy: {mode: replicated-job, replicas: 9}", "x-skep: {max_concurrent: 3, schedule: {cron: '0 3 * * *', time_zone: Europe/Berlin, concurrency: replace, keep_failed: 2, catch_up: 1h}}"), want: []string{
			`"replicatedJob":{"maxConcurrent":"3","totalCompletions":"9"}`, `"schedule":{"catchUp":"3600s","concurrency":"CONCURRENCY_REPLACE","cron":"0 3 * * *","keepFailed":2,"timeZone":"Europe/Berlin"}`}},
		{name: "x-skep of a volume and a mount", text: svc("volumes: ['vol:/x', {type: bind, source: /a, target: /a, x-skep: {wait: true}}, {type: bind, source: /b, target: /b, x-skep: {create_source: true}}]") + "volumes: {vol: {x-skep: {sharing: none}}}\n", want: []string{`"volumeSharing":"none"`, `"bindCreateSrc":true`, `"bindWait":true`}},
		{name: "jobs of compose", text: svc() + "jobs: {j: {image: 'i:1', triggers: {manual: true}}}\n", err: []string{"stdin:4:1: jobs: write a service with deploy.mode replicated-job"}},
		{name: "other extensions", text: "x-a: {b: c}\n" + svc("x-b: 1", "deploy: {x-c: 2}"), want: []string{"s_web"}},
		{name: "limits at the service", text: svc("cpus: 0.5", "mem_limit: 64m", "mem_reservation: 32m", "pids_limit: 50", "memswap_limit: 128m", "mem_swappiness: 0"), want: []string{`"limits":{"memoryBytes":"67108864","nanoCpus":"500000000","pids":"50"}`, `"memorySwappiness":"0"`, `"reservations":{"memoryBytes":"33554432"}`, `"swapBytes":"67108864"`}},
		{name: "limits that differ", text: svc("mem_limit: 64m", "deploy: {resources: {limits: {memory: 32M}}}"), err: []string{"services.web.mem_limit: deploy.resources.limits.memory says something else"}},
		{name: "scale", text: svc("scale: 3"), want: []string{`"replicas":"3"`}},
		{name: "everything of deploy", text: svc("deploy:", "  mode: replicated", "  replicas: 3", "  endpoint_mode: dnsrr", "  labels: {a: b}", "  placement: {constraints: ['node.labels.zone == a'], preferences: [{spread: node.labels.rack}], max_replicas_per_node: 1}",
			"  resources: {limits: {cpus: '1', memory: 1G, pids: 9}, reservations: {memory: 64M, generic_resources: [{discrete_resource_spec: {kind: gpu, value: 2}}]}}", "  restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 120s}",
			"  update_config: {parallelism: 2, delay: 10s, failure_action: rollback, monitor: 60s, max_failure_ratio: 0.3, order: start-first}", "  rollback_config: {parallelism: 0, failure_action: pause, order: stop-first, delay: 0s}"), want: []string{
			`"mode":"MODE_DNSRR"`, `"preferences":[{"spread":"node.labels.rack"}]`, `"maxReplicasPerNode":"1"`, `"generic":[{"kind":"gpu","value":"2"}]`, `"restart":{"condition":"RESTART_CONDITION_ON_FAILURE","delay":"5s","maxAttempts":"3","window":"120s"}`,
			`"update":{"delay":"10s","failureAction":"FAILURE_ACTION_ROLLBACK","maxFailureRatio":0.3,"monitor":"60s","order":"UPDATE_ORDER_START_FIRST","parallelism":"2"}`, `"rollback":{"failureAction":"FAILURE_ACTION_PAUSE","order":"UPDATE_ORDER_STOP_FIRST"}`}},
		{name: "everything of a container", text: svc("init: true", "tty: true", "stdin_open: true", "read_only: true", "user: '1:2'", "working_dir: /w", "group_add: ['3']", "stop_signal: SIGINT", "stop_grace_period: 1m30s", "oom_score_adj: 5", "isolation: default",
			"sysctls: {net.core.somaxconn: 9}", "cap_add: [net_admin]", "cap_drop: [ALL]", "ulimits: {nproc: 9, nofile: {soft: 1, hard: 2}}", "logging: {driver: json-file, options: {max-size: 10m}}",
			"healthcheck: {test: [CMD, a], interval: 1s, timeout: 2s, retries: 3, start_period: 4s, start_interval: 5s}"), want: []string{`"init":true`, `"tty":true`, `"openStdin":true`, `"readOnly":true`, `"user":"1:2"`, `"dir":"/w"`, `"groups":["3"]`, `"stopSignal":"SIGINT"`, `"stopGracePeriod":"90s"`, `"oomScoreAdj":"5"`,
			`"sysctls":{"net.core.somaxconn":"9"}`, `"capabilityAdd":["CAP_NET_ADMIN"]`, `"capabilityDrop":["ALL"]`, `[{"hard":"2","name":"nofile","soft":"1"},{"hard":"9","name":"nproc","soft":"9"}]`, `"logDriver":{"name":"json-file","options":{"max-size":"10m"}}`,
			`"health":{"interval":"1s","retries":3,"startInterval":"5s","startPeriod":"4s","test":["CMD","a"],"timeout":"2s"}`}},
		{name: "global job", text: svc("deploy: {mode: global-job}"), want: []string{`"globalJob":{}`}},
		{name: "job with updates", text: svc("deploy: {mode: global-job, update_config: {parallelism: 1}}"), err: []string{"services.web.deploy.update_config: jobs have none"}},
	} {
		t.Run(f.name, func(t *testing.T) { f.run(t) })
	}
	t.Run("17 the same bytes every time", func(t *testing.T) {
		text := "services: {c: {image: 'i:1', networks: [z, y, x], environment: {B: 1, A: 2}}, a: {image: 'i:1', depends_on: [c, b]}, b: {image: 'i:1'}}\nnetworks: {x: , z: , y: }\n"
		s := mustLoad(t, text)
		want, printed := show(t, s.Spec, ""), notesOf(s)
		for range 20 {
			s := mustLoad(t, text)
			if got := show(t, s.Spec, ""); got != want || notesOf(s) != printed {
				t.Fatalf("%s\n%s\nwas\n%s\n%s", got, notesOf(s), want, printed)
			}
		}
	})
	t.Run("2 ignored when asked for", func(t *testing.T) {
		form{text: svc("privileged: true", "volumes: [{type: cluster, source: x, target: /x}]"), want: []string{"note:services.web.privileged: ignored: no container has its node's rights", "note:services.web.volumes.0: ignored: mounts of type cluster"}}.
			run(t, func(o *Options) { o.IgnoreUnsupported = true })
	})
	t.Run("profiles", func(t *testing.T) {
		form{text: "services: {a: {image: 'i:1'}, b: {image: 'i:1', profiles: [x]}}", want: []string{"s_a", "s_b"}}.run(t, func(o *Options) { o.Profiles = []string{"x"} })
	})
}

func notesOf(s *Stack) string {
	var lines []string
	for _, n := range s.Notes {
		lines = append(lines, n.String())
	}
	return strings.Join(lines, "\n")
}

// 8, 9, 12, 16, 18: paths, files, variables, fragments, .env.
func TestRulesOfFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"app/stack.yml":        svc("volumes: ['./data:/d', 'file:/f']", "secrets: [pw]", "configs: [c]", "env_file: [a.env]", "environment: {T: '$TAG', S: '$SHELLED'}") + "volumes: {file: }\nsecrets: {pw: {file: ./pw}}\nconfigs: {c: {file: conf/c}}\n",
		"app/pw":               "hunter2",
		"app/conf/c":           "config",
		"app/a.env":            "FROM=file\n",
		"app/.env":             "TAG=dotenv\nSHELLED=dotenv\nQ=\"quoted\"\n",
		"other.env":            "TAG=other\n",
		"over/deploy.yml":      "services: {web: {deploy: {replicas: 4}, volumes: ['./more:/m']}}",
		"parts/base.yml":       "services: {base: {image: 'i:1', volumes: ['./b:/b'], env_file: b.env, environment: {A: base}}}",
		"parts/b.env":          "B=1\n",
		"ext.yml":              "services: {web: {extends: {file: parts/base.yml, service: base}, environment: {A: web}}}",
		"parts/inc.yml":        "services: {inc: {image: 'i:${V}', volumes: ['./i:/i'], configs: [ic]}}\nconfigs: {ic: {file: ./c}}\n",
		"parts/c":              "included",
		"parts/.env":           "V=7\n",
		"inc.yml":              "include: [parts/inc.yml]\nservices: {web: {image: 'i:1', depends_on: [inc]}}\n",
		"cycle/a.yml":          "include: [b.yml]\n" + svc(),
		"cycle/b.yml":          "include: [a.yml]\n" + svc(),
		"cycle/ext.yml":        "services: {a: {extends: b}, b: {extends: {service: a}}}",
		"missing.yml":          "include: [gone.yml]\nservices: {web: {extends: {file: gone2.yml, service: x}}}\n",
		"frag.yml":             "services: {web: {deploy: {replicas: 4}}}",
		"reset.yml":            "services: {web: {ports: !reset [], command: !override [c]}}",
		"ports.yml":            svc("ports: ['80:80']", "command: [a, b]"),
		"env/stack.yml":        svc(),
		"env/.env/placeholder": "",
	})
	at := func(env []string, files ...string) func(*Options) {
		return func(o *Options) { o.Files, o.Dir, o.Env = files, dir, env }
	}
	app := filepath.Join(dir, "app")
	shell := []string{"SHELLED=shell"}
	want := []string{`"source":"` + app + `/data"`, `"source":"s_file"`, `"env":["FROM=file","S=shell","T=dotenv"]`, "note:app/stack.yml:4:15: services.web.volumes.0: a relative path"}
	form{want: want}.run(t, at(shell, "app/stack.yml"))
	form{want: append(want[:3:3], `"replicas":"4"`, `"source":"`+app+`/more"`)}.run(t, at(shell, "app/stack.yml", "over/deploy.yml"))
	form{want: []string{`"T=other"`, `"S="`, "note:the variable SHELLED is not set"}}.run(t, at(nil, "app/stack.yml"), func(o *Options) { o.EnvFiles = []string{"other.env"} })
	form{err: []string{"cannot read the env file: there is no such file"}}.run(t, at(nil, "app/stack.yml"), func(o *Options) { o.EnvFiles = []string{"gone.env"} })
	form{want: []string{"s_web"}}.run(t, at(nil, "env/stack.yml"))
	form{err: []string{"frag.yml:1:12: services.web: the service has no image"}}.run(t, at(nil, "frag.yml"))
	form{want: []string{`"replicas":"4"`, `"publishedPort":80`}}.run(t, at(nil, "ports.yml", "frag.yml"))
	form{want: []string{`no:"publishedPort"`, `"args":["c"]`}}.run(t, at(nil, "ports.yml", "reset.yml"))
	form{want: []string{`"env":["A=web","B=1"]`, `"source":"` + dir + `/parts/b"`, "no:s_base"}}.run(t, at(nil, "ext.yml"))
	form{want: []string{`"image":"i:7"`, `"source":"` + dir + `/parts/i"`, `"service":"s_inc"`, "note:parts/inc.yml:1:"}}.run(t, at(nil, "inc.yml"))
	form{err: []string{"cycle/b.yml:1:11: include: cycle/a.yml includes itself"}}.run(t, at(nil, "cycle/a.yml"))
	form{err: []string{"ircular"}}.run(t, at(nil, "cycle/ext.yml"))
	form{err: []string{"missing.yml:1:11: include.0: cannot read the file gone.yml: there is no such file", "missing.yml:2:28: services.web.extends.file: cannot read the file gone2.yml"}}.run(t, at(nil, "missing.yml"))

	// From standard input relative paths start from the folder that one is in; from another folder the plan is the same.
	text, err := os.ReadFile(filepath.Join(app, "stack.yml"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	byName, err := Load(ctx, Options{Files: []string{"app/stack.yml"}, Dir: dir, Stack: "s", Env: shell})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{
		{Files: []string{"-"}, Stdin: strings.NewReader(string(text)), Dir: app, Stack: "s", Env: shell},
		{Files: []string{"stack.yml"}, Dir: app, Stack: "s", Env: shell},
		{Files: []string{"../app/stack.yml"}, Dir: filepath.Join(dir, "over"), Stack: "s", Env: shell},
		{Files: []string{filepath.Join(app, "stack.yml")}, Stack: "s", Env: shell},
	} {
		s, err := Load(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := show(t, s.Spec, ""), show(t, byName.Spec, ""); got != want {
			t.Errorf("%v from %s:\n%s\nwant\n%s", o.Files, o.Dir, got, want)
		}
		if len(s.Secrets) != 1 || string(s.Secrets[0].Data) != "hunter2" || s.Secrets[0].Name != "s_pw" || string(s.Configs[0].Data) != "config" {
			t.Errorf("values %v %v", s.Secrets, s.Configs)
		}
	}
}

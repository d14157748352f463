package spec

import (
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func good() *skepv1.ServiceSpec {
	return &skepv1.ServiceSpec{
		Name: "web_server",
		Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "httpd"}},
	}
}

type refusal struct {
	name string
	edit func(s *skepv1.ServiceSpec, c *skepv1.ContainerSpec)
	want string // "" = accepted
}

func mount(m ...*skepv1.Mount) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return func(_ *skepv1.ServiceSpec, c *skepv1.ContainerSpec) { c.Mounts = m }
}

func port(mode skepv1.EndpointSpec_Mode, p ...*skepv1.PortConfig) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return func(s *skepv1.ServiceSpec, _ *skepv1.ContainerSpec) {
		s.Endpoint = &skepv1.EndpointSpec{Mode: mode, Ports: p}
	}
}

func resources(r *skepv1.ResourceRequirements) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return func(s *skepv1.ServiceSpec, _ *skepv1.ContainerSpec) { s.Task.Resources = r }
}

func placement(p *skepv1.Placement) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return func(s *skepv1.ServiceSpec, _ *skepv1.ContainerSpec) { s.Task.Placement = p }
}

func ctr(f func(*skepv1.ContainerSpec)) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return func(_ *skepv1.ServiceSpec, c *skepv1.ContainerSpec) { f(c) }
}

func svc(f func(*skepv1.ServiceSpec)) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return func(s *skepv1.ServiceSpec, _ *skepv1.ContainerSpec) { f(s) }
}

func ready(h *skepv1.HealthConfig) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return ctr(func(c *skepv1.ContainerSpec) { c.Ready = h })
}

func health(h *skepv1.HealthConfig) func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {
	return ctr(func(c *skepv1.ContainerSpec) { c.Health = h })
}

var (
	volume = skepv1.Mount_TYPE_VOLUME
	bind   = skepv1.Mount_TYPE_BIND
	tmpfs  = skepv1.Mount_TYPE_TMPFS
	job    = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{}}}
	global = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
)

var refusals = []refusal{
	{"plain", func(*skepv1.ServiceSpec, *skepv1.ContainerSpec) {}, ""},
	{"no name", svc(func(s *skepv1.ServiceSpec) { s.Name = "" }), "meta: name must be provided"},
	{"dot in name", svc(func(s *skepv1.ServiceSpec) { s.Name = "a.b" }), "name must be valid as a DNS name component"},
	{"trailing hyphen", svc(func(s *skepv1.ServiceSpec) { s.Name = "a-" }), "name must be valid as a DNS name component"},
	{"63 characters", svc(func(s *skepv1.ServiceSpec) { s.Name = strings.Repeat("a", 63) }), ""},
	{"64 characters", svc(func(s *skepv1.ServiceSpec) { s.Name = strings.Repeat("a", 64) }), "name must be 63 characters or fewer"},
	{"empty label", svc(func(s *skepv1.ServiceSpec) { s.Labels = map[string]string{"": "x"} }), "invalid label '=x': empty name"},
	{"label with space", svc(func(s *skepv1.ServiceSpec) { s.Labels = map[string]string{"a b": ""} }), "label 'a b' contains whitespaces"},
	{"container label with tab", ctr(func(c *skepv1.ContainerSpec) { c.Labels = map[string]string{"a\tb": ""} }), "label 'a\tb' contains whitespaces"},
	{"no container", svc(func(s *skepv1.ServiceSpec) { s.Task = nil }), "ContainerSpec: missing in service spec"},
	{"no image", ctr(func(c *skepv1.ContainerSpec) { c.Image = "" }), "ContainerSpec: image reference must be provided"},
	{"bad image", ctr(func(c *skepv1.ContainerSpec) { c.Image = "HTTPD:x" }), `ContainerSpec: "HTTPD:x" is not a valid repository/tag`},
	{"million and one replicas", svc(func(s *skepv1.ServiceSpec) { s.Mode = Replicated(1_000_001) }), "invalid replicas value 1000001: at most 1000000"},
	{"max per node on global", svc(func(s *skepv1.ServiceSpec) {
		s.Mode, s.Task.Placement = global, &skepv1.Placement{MaxReplicasPerNode: 1}
	}), "replicas-max-per-node can only be used with replicated or replicated-job mode"},
	{"job with update", svc(func(s *skepv1.ServiceSpec) { s.Mode, s.Update = job, &skepv1.UpdateConfig{} }), "update and rollback configuration is not supported for jobs"},
	{"job", svc(func(s *skepv1.ServiceSpec) { s.Mode = job }), ""},
	{"negative update delay", svc(func(s *skepv1.ServiceSpec) { s.Update = &skepv1.UpdateConfig{Delay: durationpb.New(-1)} }), "TaskSpec: update-delay cannot be negative"},
	{"negative rollback monitor", svc(func(s *skepv1.ServiceSpec) { s.Rollback = &skepv1.UpdateConfig{Monitor: durationpb.New(-1)} }), "TaskSpec: rollback-monitor cannot be negative"},
	{"ratio above 1", svc(func(s *skepv1.ServiceSpec) { s.Update = &skepv1.UpdateConfig{MaxFailureRatio: 1.1} }), "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
	{"ratio NaN", svc(func(s *skepv1.ServiceSpec) { s.Update = &skepv1.UpdateConfig{MaxFailureRatio: math.NaN()} }), "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
	{"rollback of rollback", svc(func(s *skepv1.ServiceSpec) {
		s.Rollback = &skepv1.UpdateConfig{FailureAction: skepv1.FailureAction_FAILURE_ACTION_ROLLBACK}
	}), "invalid rollback-failure-action rollback: use pause or continue"},
	{"negative restart delay", svc(func(s *skepv1.ServiceSpec) { s.Task.Restart = &skepv1.RestartPolicy{Delay: durationpb.New(-1)} }), "TaskSpec: restart-delay cannot be negative"},
	{"negative restart backoff", svc(func(s *skepv1.ServiceSpec) {
		s.Task.Restart = &skepv1.RestartPolicy{MaxDelay: durationpb.New(-1)}
	}), "TaskSpec: restart-backoff cannot be negative"},
	{"health budget", svc(func(s *skepv1.ServiceSpec) { s.HealthBudget = 1_000_001 }), "invalid health-budget value 1000001: at most 1000000, or 0 for a quarter of the tasks"},
	{"unknown restart condition", svc(func(s *skepv1.ServiceSpec) { s.Task.Restart = &skepv1.RestartPolicy{Condition: 9} }), `invalid RestartCondition: "9": use none, on-failure or any`},

	{"cpu too small", resources(&skepv1.ResourceRequirements{Limits: &skepv1.Resources{NanoCpus: 1000}}), "invalid cpu value 1e-06: Must be at least 0.001"},
	{"negative cpu", resources(&skepv1.ResourceRequirements{Reservations: &skepv1.Resources{NanoCpus: -1e9}}), "invalid cpu value -1: Must be at least 0.001"},
	{"memory too small", resources(&skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 1024}}), "invalid memory value 1024: Must be at least 4MiB"},
	{"swap without limit", resources(&skepv1.ResourceRequirements{SwapBytes: proto.Int64(1)}), "memory swap provided, but no memory-limit was set"},
	{"swappiness", resources(&skepv1.ResourceRequirements{MemorySwappiness: proto.Int64(101)}), "invalid memory-swappiness value 101: use 0 to 100"},
	{"reserve above limit", resources(&skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 8 << 20}, Reservations: &skepv1.Resources{MemoryBytes: 9 << 20}}), "reserve-memory 9437184 is above limit-memory 8388608"},
	{"named generic", resources(&skepv1.ResourceRequirements{Reservations: &skepv1.Resources{Generic: []*skepv1.GenericResource{{Kind: "GPU", Named: []string{"a"}}}}}), "Named Generic Resources is not supported for service create or update"},
	{"generic twice", resources(&skepv1.ResourceRequirements{Reservations: &skepv1.Resources{Generic: []*skepv1.GenericResource{{Kind: "GPU", Value: 1}, {Kind: "GPU", Value: 1}}}}), "duplicate generic-resource `GPU`"},
	{"generic zero", resources(&skepv1.ResourceRequirements{Reservations: &skepv1.Resources{Generic: []*skepv1.GenericResource{{Kind: "GPU"}}}}), "invalid generic-resource GPU=0: the count must be 1 or more"},

	{"constraint", placement(&skepv1.Placement{Constraints: []string{"node.labels.env==test"}}), ""},
	{"constraint without operator", placement(&skepv1.Placement{Constraints: []string{"node.role"}}), "constraint expected one operator from ==, !="},
	{"empty preference", placement(&skepv1.Placement{Preferences: []*skepv1.PlacementPreference{{}}}), `placement preference must be of the format "<strategy>=<arg>"`},
	{"strange preference", placement(&skepv1.Placement{Preferences: []*skepv1.PlacementPreference{{Spread: "rack"}}}), "placement preference spread=rack: spread over node.labels.<name> or engine.labels.<name>"},
	{"preference", placement(&skepv1.Placement{Preferences: []*skepv1.PlacementPreference{{Spread: "node.labels.rack"}}}), ""},

	{"ingress network", svc(func(s *skepv1.ServiceSpec) { s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "ingress"}} }), "Service cannot be explicitly attached to the ingress network"},
	{"network twice", svc(func(s *skepv1.ServiceSpec) {
		s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "a"}, {Target: "a"}}
	}), "service is already attached to network a"},

	{"env without name", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{"=x"} }), `invalid environment variable: "=x": use KEY=value`},
	{"env", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{"A=b=c", "B"} }), ""},
	{"relative workdir", ctr(func(c *skepv1.ContainerSpec) { c.Dir = "x" }), `invalid workdir "x": use an absolute path`},
	{"user with space", ctr(func(c *skepv1.ContainerSpec) { c.User = "a b" }), `invalid user "a b": use <name|uid>[:<group|gid>]`},
	{"signal", ctr(func(c *skepv1.ContainerSpec) { c.StopSignal = "sigusr1" }), ""},
	{"unknown signal", ctr(func(c *skepv1.ContainerSpec) { c.StopSignal = "FOO" }), `invalid stop-signal "FOO": use a name such as SIGTERM, or 1 to 64`},
	{"real-time signal", ctr(func(c *skepv1.ContainerSpec) { c.StopSignal = "SIGRTMIN+3" }), ""},
	{"signal number", ctr(func(c *skepv1.ContainerSpec) { c.StopSignal = "99" }), `invalid stop-signal "99": use a name such as SIGTERM, or 1 to 64`},
	{"negative grace", ctr(func(c *skepv1.ContainerSpec) { c.StopGracePeriod = durationpb.New(-time.Second) }), "ContainerSpec: stop-grace-period cannot be negative"},
	{"oom score", ctr(func(c *skepv1.ContainerSpec) { c.OomScoreAdj = 1001 }), "invalid value 1001, oom-score-adj must be in the range [-1000, 1000]"},
	{"hyper-v", ctr(func(c *skepv1.ContainerSpec) { c.Isolation = "hyperv" }), `invalid isolation "hyperv": only default exists on Linux`},
	{"hostname template", ctr(func(c *skepv1.ContainerSpec) { c.Hostname = "{{.Node.Hostname}}-{{.Task.Slot}}" }), ""},
	{"hostname", ctr(func(c *skepv1.ContainerSpec) { c.Hostname = "a b" }), `invalid hostname "a b": use letters, digits and hyphens, at most 63`},
	{"host", ctr(func(c *skepv1.ContainerSpec) { c.Hosts = []string{"10.0.0.1 db db2"} }), ""},
	{"host without name", ctr(func(c *skepv1.ContainerSpec) { c.Hosts = []string{"10.0.0.1"} }), `bad format for add-host: "10.0.0.1": use "IP name"`},
	{"host address", ctr(func(c *skepv1.ContainerSpec) { c.Hosts = []string{"300.0.0.1 db"} }), `invalid IP address in add-host: "300.0.0.1"`},
	{"dns", ctr(func(c *skepv1.ContainerSpec) { c.Dns = &skepv1.DNSConfig{Nameservers: []string{"x"}} }), "IP address is not correctly formatted: x"},
	{"dns search", ctr(func(c *skepv1.ContainerSpec) { c.Dns = &skepv1.DNSConfig{Search: []string{"a..b"}} }), "a..b is not a valid domain"},
	{"sysctl", ctr(func(c *skepv1.ContainerSpec) { c.Sysctls = map[string]string{"net.core.somaxconn": "1024"} }), ""},
	{"sysctl of the node", ctr(func(c *skepv1.ContainerSpec) { c.Sysctls = map[string]string{"vm.max_map_count": "262144"} }), "invalid sysctl vm.max_map_count: it is the whole node's, not a container's: set it on the nodes (sysctl -w vm.max_map_count=…); a container has its own net.*, fs.mqueue.*, kernel.domainname, kernel.msgmax, kernel.msgmnb, kernel.msgmni, kernel.sem, kernel.shmall, kernel.shmmax, kernel.shmmni, kernel.shm_rmid_forced"},
	{"sysctl hostname", ctr(func(c *skepv1.ContainerSpec) { c.Sysctls = map[string]string{"kernel.hostname": "x"} }), "invalid sysctl kernel.hostname: use hostname"},
	{"sysctl with slashes", ctr(func(c *skepv1.ContainerSpec) {
		c.Sysctls = map[string]string{"net/ipv4/conf/eth0.1/rp_filter": "1", "kernel.shmmax": "1", "fs.mqueue.msg_max": "1"}
	}), ""},
	{"sysctl on network host", func(s *skepv1.ServiceSpec, c *skepv1.ContainerSpec) {
		c.Sysctls = map[string]string{"net.core.somaxconn": "1"}
		s.Task.Networks = []*skepv1.NetworkAttachment{{Target: "host"}}
	}, "invalid sysctl net.core.somaxconn: tasks on network host share the node's own; set it on the nodes"},
	{"ulimit nofile unlimited", ctr(func(c *skepv1.ContainerSpec) { c.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: -1, Hard: -1}} }), "invalid ulimit nofile=-1:-1: no kernel gives more than 2147483584 open files; use a number up to the nodes' fs.nr_open, such as nofile=1048576"},
	{"ulimit as", ctr(func(c *skepv1.ContainerSpec) { c.Ulimits = []*skepv1.Ulimit{{Name: "as", Soft: -1, Hard: -1}} }), ""},
	{"env of another's template", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{"A={{ toJSON .Data }}"} }), `invalid env A={{ toJSON .Data }}: template "{{ toJSON .Data }}": function "toJSON" not defined; where the braces belong to the value, write it as A={{"{{"}} toJSON .Data }}`},
	{"env of another's template, literally", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{`A={{"{{"}} toJSON .Data }}`} }), ""},
	{"env misspelt", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{"A={{.Task.Slto}}"} }), `invalid env A={{.Task.Slto}}: template "{{.Task.Slto}}": executing "" at <.Task.Slto>: can't evaluate field Slto in type struct { ID string; Name string; Slot string }; where the braces belong to the value, write it as A={{"{{"}}.Task.Slto}}`},
	{"env with half a template", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{"A={{"} }), `invalid env A={{: template "{{": unclosed action; where the braces belong to the value, write it as A={{"{{"}}`},
	{"env that fills a node", ctr(func(c *skepv1.ContainerSpec) { c.Env = []string{`A={{printf "%1000000000d" 1}}`} }), `invalid env A={{printf "%1000000000d" 1}}: template "{{printf \"%1000000000d\" 1}}": executing "" at <printf "%1000000000d" 1>: error calling printf: it makes more than 65536 bytes; where the braces belong to the value, write it as A={{"{{"}}printf "%1000000000d" 1}}`},
	{"hostname template misspelt", ctr(func(c *skepv1.ContainerSpec) { c.Hostname = "{{.Node.Name}}" }), `invalid hostname "{{.Node.Name}}": hostname: template "{{.Node.Name}}": executing "" at <.Node.Name>: can't evaluate field Name in type struct { ID string; Hostname string; Platform struct { Architecture string; OS string } }`},
	{"hostname template of no name", ctr(func(c *skepv1.ContainerSpec) { c.Hostname = "a b {{.Task.Slot}}" }), `invalid hostname "a b {{.Task.Slot}}": it comes to "a b 1"; use letters, digits and hyphens, at most 63`},
	{"volume template with blanks", mount(&skepv1.Mount{Source: "{{ .Service.Name }}-{{ .Task.Slot }}", Target: "/a"}), ""},
	{"bind template", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: "/data/{{ .Service.Name }}/{{ .Task.Slot }}", Target: "/a/{{ .Task.Slot }}"}), ""},
	{"bind of a label", func(s *skepv1.ServiceSpec, c *skepv1.ContainerSpec) {
		s.Labels = map[string]string{"dir": "/srv"}
		c.Mounts = []*skepv1.Mount{{Type: skepv1.Mount_TYPE_BIND, Source: `{{ index .Service.Labels "dir" }}/x`, Target: "/a"}}
	}, ""},
	{"bind template of a relative path", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: "{{.Task.Slot}}", Target: "/a"}), `invalid bind mount source "{{.Task.Slot}}": it comes to "1", and must be an absolute path`},
	{"bind template misspelt", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: "/a{{.X}}", Target: "/a"}), `invalid mount source "/a{{.X}}": template "/a{{.X}}": executing "" at <.X>: can't evaluate field X in type taskname.Names`},
	{"target template", mount(&skepv1.Mount{Source: "v", Target: "/{{ .Task.Slto }}"}), `invalid mount target "/{{ .Task.Slto }}": template "/{{ .Task.Slto }}": executing "" at <.Task.Slto>: can't evaluate field Slto in type struct { ID string; Name string; Slot string }`},
	{"volume label template", mount(&skepv1.Mount{Source: "v", Target: "/a", VolumeLabels: map[string]string{"k": "{{x}}"}}), `invalid volume-label k={{x}} of the mount at /a: template "{{x}}": function "x" not defined; where the braces belong to the value, write {{"{{"}}x}}`},
	{"memory below what starts", resources(&skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 5 << 20}}), "invalid limit-memory 5242880: Must be at least 6MiB: with less a container does not start"},
	{"reservation of as little", resources(&skepv1.ResourceRequirements{Reservations: &skepv1.Resources{MemoryBytes: 5 << 20}}), ""},
	{"sysctl form", ctr(func(c *skepv1.ContainerSpec) { c.Sysctls = map[string]string{"somaxconn": "1"} }), `invalid sysctl "somaxconn": use a name such as net.ipv4.ip_forward=1`},
	{"capability", ctr(func(c *skepv1.ContainerSpec) { c.CapabilityAdd = []string{"net_admin", "ALL"} }), ""},
	{"unknown capability", ctr(func(c *skepv1.ContainerSpec) { c.CapabilityDrop = []string{"FLY"} }), `invalid capability: "FLY": use a name such as CAP_NET_ADMIN, or ALL`},
	{"ulimit soft above hard", ctr(func(c *skepv1.ContainerSpec) { c.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: 5, Hard: 4}} }), "ulimit soft limit must be less than or equal to hard limit: 5 > 4"},
	{"ulimit unlimited", ctr(func(c *skepv1.ContainerSpec) { c.Ulimits = []*skepv1.Ulimit{{Name: "memlock", Soft: -1, Hard: -1}} }), ""},
	{"seccomp", ctr(func(c *skepv1.ContainerSpec) { c.Privileges = &skepv1.Privileges{SeccompMode: "custom"} }), "seccomp mode custom needs a profile"},
	{"secret without source", ctr(func(c *skepv1.ContainerSpec) { c.Secrets = []*skepv1.FileReference{{Target: "x"}} }), "secret: source is required"},
	{"secrets with one target", ctr(func(c *skepv1.ContainerSpec) {
		c.Secrets = []*skepv1.FileReference{{Name: "a", Target: "c"}, {Name: "b", Target: "c"}}
	}), "secret references 'a' and 'b' have a conflicting target: 'c'"},
	{"config climbs", ctr(func(c *skepv1.ContainerSpec) { c.Configs = []*skepv1.FileReference{{Name: "a", Target: "/x/../y"}} }), `invalid config target "/x/../y": it must not contain ..`},

	{"health", health(&skepv1.HealthConfig{Test: []string{"CMD-SHELL", "true"}, Interval: durationpb.New(time.Second)}), ""},
	{"health interval", health(&skepv1.HealthConfig{Interval: durationpb.New(time.Microsecond)}), "ContainerSpec: Interval in HealthConfig cannot be less than 1ms"},
	{"health start interval", health(&skepv1.HealthConfig{StartInterval: durationpb.New(-1)}), "ContainerSpec: StartInterval in HealthConfig cannot be less than 1ms"},
	{"health retries", health(&skepv1.HealthConfig{Retries: -1}), "ContainerSpec: Retries in HealthConfig cannot be negative"},
	{"none and more", health(&skepv1.HealthConfig{Test: []string{"NONE"}, Retries: 3}), "--no-healthcheck conflicts with --health-* options"},
	{"none and http", health(&skepv1.HealthConfig{Test: []string{"NONE"}, TcpPort: 80}), "--no-healthcheck conflicts with --health-* options"},
	{"health http", health(&skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 80, Path: "/x"}}), ""},
	{"health two ways", health(&skepv1.HealthConfig{Test: []string{"CMD", "true"}, TcpPort: 80}), "ContainerSpec: the health check asks in 2 ways (a command, tcp): use one of them"},
	{"health port 0", health(&skepv1.HealthConfig{Grpc: &skepv1.GRPCCheck{}}), "ContainerSpec: the health check asks grpc port 0: use 1 to 65535"},
	{"health port 65536", health(&skepv1.HealthConfig{TcpPort: 65536}), "ContainerSpec: the health check asks tcp port 65536: use 1 to 65535"},
	{"health path", health(&skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 80, Path: "x"}}), `ContainerSpec: the path "x" of the health check does not begin with "/"`},
	{"health path with a break", health(&skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 80, Path: "/a b"}}), `ContainerSpec: the path "/a b" of the health check holds a space or a control character: write it as %20`},
	{"readiness", ready(&skepv1.HealthConfig{Test: []string{"CMD", "true"}, Retries: 1}), ""},
	{"readiness of nothing", ready(&skepv1.HealthConfig{Retries: 1}), "ContainerSpec: the readiness check does not say what to ask: give it a command, http, tcp or grpc"},
	{"readiness none", ready(&skepv1.HealthConfig{Test: []string{"NONE"}}), "ContainerSpec: a readiness check cannot be NONE: images have none to switch off, leave it out"},
	{"readiness start period", ready(&skepv1.HealthConfig{TcpPort: 80, StartPeriod: durationpb.New(time.Second)}), "ContainerSpec: a readiness check has no start period: a task is not ready until its first success, however long that takes"},
	{"readiness timeout", ready(&skepv1.HealthConfig{TcpPort: 80, Timeout: durationpb.New(1)}), "ContainerSpec: Timeout in the readiness check cannot be less than 1ms"},
	{"readiness port", ready(&skepv1.HealthConfig{Http: &skepv1.HTTPCheck{Port: 70000, Path: "/"}}), "ContainerSpec: the readiness check asks http port 70000: use 1 to 65535"},
	{"health word", health(&skepv1.HealthConfig{Test: []string{"curl"}}), `ContainerSpec: health check begins with "curl": use NONE, CMD or CMD-SHELL`},

	{"mounts", mount(&skepv1.Mount{Source: "data", Target: "/d"}, &skepv1.Mount{Type: bind, Source: "/a", Target: "/b", BindPropagation: "rslave"}, &skepv1.Mount{Type: tmpfs, Target: "/t", TmpfsSize: 1}), ""},
	{"volume names with templates", mount(&skepv1.Mount{Source: "data-{{.Task.Slot}}", Target: "/a"}, &skepv1.Mount{Source: "{{ .Service.Name }}-{{ index .Service.Labels \"a/b\" }}", Target: "/b"}), ""},
	{"a template that costs memory", mount(&skepv1.Mount{Source: `v{{printf "%1000000000d" 1}}`, Target: "/a"}), `invalid volume name: template "v{{printf \"%1000000000d\" 1}}": only fields ({{.Task.Slot}}), labels ({{index .Service.Labels "x"}}) and join may stand in the name of a volume`},
	{"half a template", mount(&skepv1.Mount{Source: "v{{.Task.Slot", Target: "/a"}), `invalid volume name: template "v{{.Task.Slot": unclosed action`},
	{"blanks beside a template", mount(&skepv1.Mount{Source: "data {{ .Task.Slot }}", Target: "/a"}), `invalid volume name "data {{ .Task.Slot }}": it comes to "data 1"; use letters, digits, '.', '_' and '-'`},
	{"a slash beside a template", mount(&skepv1.Mount{Source: "{{.Task.Slot}}/x", Target: "/a"}), `invalid volume name "{{.Task.Slot}}/x": it comes to "1/x"; use letters, digits, '.', '_' and '-'`},
	{"options of local volumes", mount(&skepv1.Mount{Source: "a", Target: "/a", VolumeOpts: map[string]string{"type": "nfs", "device": ":/x", "o": "addr=nas"}},
		&skepv1.Mount{Source: "b", Target: "/b", VolumeDriver: "local", VolumeOpts: map[string]string{"device": "/x", "o": "ro,bind"}},
		&skepv1.Mount{Source: "c", Target: "/c", VolumeDriver: "rexray", VolumeOpts: map[string]string{"size": "5"}}), ""},
	{"unknown option", mount(&skepv1.Mount{Source: "a", Target: "/a", VolumeOpts: map[string]string{"tpye": "nfs"}}), `invalid volume option "tpye": the local driver has type, device and o, as mount(8) takes them`},
	{"option device missing", mount(&skepv1.Mount{Source: "a", Target: "/a", VolumeOpts: map[string]string{"type": "nfs"}}), "missing volume option device: say what is to be mounted, such as device=tmpfs, device=/dev/sdb1 or device=:/export"},
	{"option type missing", mount(&skepv1.Mount{Source: "a", Target: "/a", VolumeOpts: map[string]string{"device": "/dev/sdb"}}), "missing volume option type: say how /dev/sdb is to be mounted, such as type=nfs, type=ext4 or o=bind"},
	{"options without a name", mount(&skepv1.Mount{Target: "/a", VolumeOpts: map[string]string{"type": "tmpfs", "device": "tmpfs"}}), "mount of /a: volume-driver and volume-opt belong to a volume with a name: use source=NAME"},
	{"plug-in without a name", mount(&skepv1.Mount{Target: "/a", VolumeDriver: "rexray"}), "mount of /a: volume-driver and volume-opt belong to a volume with a name: use source=NAME"},
	{"sharing", mount(&skepv1.Mount{Source: "a", Target: "/a", VolumeSharing: "two"}), `invalid volume-sharing "two": use none (one task), onewriter (the tasks of one node) or all`},
	{"sharing of a bind", mount(&skepv1.Mount{Type: bind, Source: "/a", Target: "/d", VolumeSharing: "all"}), "cannot mix 'volume-sharing' with mount type 'bind': it belongs to type volume"},
	{"wait for a volume", mount(&skepv1.Mount{Source: "a", Target: "/d", BindWait: true}), "cannot mix 'bind-wait' with mount type 'volume': it belongs to type bind"},
	{"mount twice", mount(&skepv1.Mount{Source: "a", Target: "/d"}, &skepv1.Mount{Source: "b", Target: "/d/"}), "ContainerSpec: duplicate mount point: /d/"},
	{"mount target", mount(&skepv1.Mount{Source: "a", Target: "d"}), "invalid mount target, must be an absolute path: d"},
	{"mount on root", mount(&skepv1.Mount{Source: "a", Target: "/"}), "invalid mount target, must not be the root directory: /"},
	{"volume by path", mount(&skepv1.Mount{Type: volume, Source: "/a", Target: "/d"}), "invalid volume mount source, must not be an absolute path: /a"},
	{"relative bind", mount(&skepv1.Mount{Type: bind, Source: "a", Target: "/d"}), "invalid bind mount source, must be an absolute path: a"},
	{"tmpfs source", mount(&skepv1.Mount{Type: tmpfs, Source: "a", Target: "/d"}), "invalid tmpfs source, source must be empty"},
	{"npipe", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_NPIPE, Target: "/d"}), "mount type npipe exists on Windows only: use volume, bind or tmpfs"},
	{"cluster volume", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_CLUSTER, Source: "c", Target: "/d"}), "mount of /d: type cluster (CSI volumes) is not supported, use type=volume with the volume-driver of a plug-in"},
	{"image mount", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_IMAGE, Source: "i", Target: "/d"}), "mount of /d: type image is not supported, put what the task needs into its own image or into a volume"},
	{"a wait and a folder made", mount(&skepv1.Mount{Type: skepv1.Mount_TYPE_BIND, Source: "/s", Target: "/d", BindWait: true, BindCreateSrc: true}), "bind-wait waits until something is mounted at /s, and bind-create-src does without: use one of them"},
	{"propagation", mount(&skepv1.Mount{Type: bind, Source: "/a", Target: "/d", BindPropagation: "up"}), `invalid bind-propagation "up": use rprivate, private, rshared, shared, rslave or slave`},
	{"foreign option", mount(&skepv1.Mount{Type: bind, Source: "/a", Target: "/d", VolumeNocopy: true}), "cannot mix 'volume-nocopy' with mount type 'bind': it belongs to type volume"},
	{"subpath climbs", mount(&skepv1.Mount{Source: "a", Target: "/d", VolumeSubpath: "../x"}), `invalid volume-subpath "../x": use a path below the root of the mount`},
	{"recursive readonly", mount(&skepv1.Mount{Type: bind, Source: "/a", Target: "/d", BindRecursive: "readonly"}), "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"},

	{"port", port(0, &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080}, &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080, Protocol: "udp"}, &skepv1.PortConfig{TargetPort: 80}, &skepv1.PortConfig{TargetPort: 81}), ""},
	{"port twice", port(0, &skepv1.PortConfig{TargetPort: 80, PublishedPort: 8080}, &skepv1.PortConfig{TargetPort: 81, PublishedPort: 8080, Protocol: "tcp"}), "EndpointSpec: duplicate published ports provided"},
	{"no target", port(0, &skepv1.PortConfig{PublishedPort: 80}), "missing mandatory field 'target' of a published port"},
	{"port range", port(0, &skepv1.PortConfig{TargetPort: 80, PublishedPort: 70000}), "EndpointSpec: invalid published port 70000: use 1 to 65535, or none for a free one"},
	{"protocol", port(0, &skepv1.PortConfig{TargetPort: 80, Protocol: "icmp"}), "invalid protocol value 'icmp': use tcp, udp or sctp"},
	{"dns-starting without a network", func(s *skepv1.ServiceSpec, _ *skepv1.ContainerSpec) {
		s.Endpoint = &skepv1.EndpointSpec{DnsStarting: true}
	}, "EndpointSpec: dns-starting lists tasks by name on the service's networks, and it is on none: give it a network, or leave dns-starting out"},
	{"dns-starting on the host's network", func(s *skepv1.ServiceSpec, _ *skepv1.ContainerSpec) {
		s.Endpoint, s.Task.Networks = &skepv1.EndpointSpec{DnsStarting: true}, []*skepv1.NetworkAttachment{{Target: "host"}}
	}, "EndpointSpec: dns-starting lists tasks by name on the service's networks, and it is on none: give it a network, or leave dns-starting out"},
	{"dnsrr with ingress", port(skepv1.EndpointSpec_MODE_DNSRR, &skepv1.PortConfig{TargetPort: 80}), "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"},
	{"dnsrr with host", port(skepv1.EndpointSpec_MODE_DNSRR, &skepv1.PortConfig{TargetPort: 80, PublishMode: skepv1.PublishMode_PUBLISH_MODE_HOST}), ""},
}

func TestValidate(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			s := good()
			r.edit(s, s.GetTask().GetContainer())
			err := Validate(s)
			switch {
			case r.want == "" && err != nil:
				t.Fatalf("refused: %v", err)
			case r.want != "" && (err == nil || err.Error() != r.want):
				t.Fatalf("got  %v\nwant %s", err, r.want)
			case err != nil && fault.Of(err) != fault.CodeInvalid:
				t.Fatalf("code %s", fault.Of(err))
			case err == nil:
				// What is accepted stays accepted with its defaults, and defaults are filled in once.
				Defaults(s)
				if err := Validate(s); err != nil {
					t.Fatalf("refused with defaults: %v", err)
				}
				again := proto.CloneOf(s)
				Defaults(again)
				if !proto.Equal(s, again) {
					t.Fatalf("defaults change twice: %s", Diff(s, again))
				}
			}
		})
	}
	if Validate(nil) == nil {
		t.Fatal("nil accepted")
	}
}

func TestDefaults(t *testing.T) {
	s := good()
	Defaults(s)
	c := s.Task.Container
	if c.Image != "httpd:latest" || c.StopGracePeriod.AsDuration() != 10*time.Second {
		t.Errorf("container %v", c)
	}
	if r := s.Task.Restart; r.Condition != skepv1.RestartCondition_RESTART_CONDITION_ANY || r.Delay.AsDuration() != 5*time.Second || r.MaxDelay.AsDuration() != 5*time.Minute || r.MaxAttempts != 0 {
		t.Errorf("restart %v", r)
	}
	for _, u := range []*skepv1.UpdateConfig{s.Update, s.Rollback} {
		if u.Parallelism != 1 || u.Monitor.AsDuration() != 5*time.Second || u.FailureAction != skepv1.FailureAction_FAILURE_ACTION_PAUSE || u.Order != skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST {
			t.Errorf("update %v", u)
		}
	}
	if n, ok := Replicas(s); !ok || n != 1 || Mode(s) != "replicated" {
		t.Errorf("mode %v", s.Mode)
	}
	s = good()
	s.Task.Restart = &skepv1.RestartPolicy{MaxDelay: durationpb.New(0)}
	Defaults(s)
	if r := s.Task.Restart; r.MaxDelay.AsDuration() != 0 {
		t.Error("a back-off that was switched off became one")
	}
	s = good()
	s.Update, s.Mode = &skepv1.UpdateConfig{}, Replicated(0)
	Defaults(s)
	if s.Update.Parallelism != 0 {
		t.Error("a given configuration with parallelism 0 means all at once")
	}
	if n, _ := Replicas(s); n != 0 {
		t.Error("zero replicas became something else")
	}
	s = good()
	s.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{TotalCompletions: 4}}}
	Defaults(s)
	if j := s.Mode.GetReplicatedJob(); j.MaxConcurrent != 4 || s.Update != nil || !IsJob(s) {
		t.Errorf("job %v", s)
	}
}

func TestImages(t *testing.T) {
	const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for in, want := range map[string][2]string{
		"httpd":                              {"httpd:latest", "docker.io/library/httpd:latest"},
		"docker.io/library/httpd:2":          {"httpd:2", "docker.io/library/httpd:2"},
		"quay.io/a/b":                        {"quay.io/a/b:latest", "quay.io/a/b:latest"},
		"localhost:5000/x:v1":                {"localhost:5000/x:v1", "localhost:5000/x:v1"},
		"httpd:2" + digest:                   {"httpd:2" + digest, "docker.io/library/httpd:2" + digest},
		"docker.io/library/httpd:2" + digest: {"httpd:2" + digest, "docker.io/library/httpd:2" + digest},
	} {
		short, err := NormalizeImage(in)
		full, ferr := FullImage(in)
		if err != nil || ferr != nil || short != want[0] || full != want[1] {
			t.Errorf("%s: %s %v, %s %v", in, short, err, full, ferr)
		}
	}
	if !HasDigest("httpd:2"+digest) || HasDigest("httpd:2") {
		t.Error("HasDigest")
	}
}

func TestCluster(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*skepv1.ClusterSpec)
		want string
	}{
		"defaults":       {func(*skepv1.ClusterSpec) {}, ""},
		"name":           {func(c *skepv1.ClusterSpec) { c.Name = "x" }, `swarm spec must be named "default"`},
		"heartbeat":      {func(c *skepv1.ClusterSpec) { c.HeartbeatPeriod = durationpb.New(-1) }, "heartbeat time period cannot be a negative duration"},
		"fast heartbeat": {func(c *skepv1.ClusterSpec) { c.HeartbeatPeriod = durationpb.New(time.Millisecond) }, "dispatcher-heartbeat 1ms is too short: use 100ms or more"},
		"cert expiry":    {func(c *skepv1.ClusterSpec) { c.NodeCertExpiry = durationpb.New(time.Minute) }, "minimum certificate expiry time is: 1h0m0s"},
		"data path port": {func(c *skepv1.ClusterSpec) { c.DataPathPort = 80 }, "Datapath port number is not in valid range (1024-49151) : 80"},
		"mask length":    {func(c *skepv1.ClusterSpec) { c.SubnetSize = 30 }, "subnet size is out of range: 30"},
		"mask in pool":   {func(c *skepv1.ClusterSpec) { c.DefaultAddrPools, c.SubnetSize = []string{"10.1.0.0/26"}, 24 }, `invalid CIDR: "10.1.0.0/26". Subnet size is too small for pool: 24`},
		"pool":           {func(c *skepv1.ClusterSpec) { c.DefaultAddrPools = []string{"x"} }, `invalid default-addr-pool "x": use an IPv4 CIDR such as 10.0.0.0/8`},
		"host bits":      {func(c *skepv1.ClusterSpec) { c.DefaultAddrPools = []string{"10.0.0.1/8"} }, `invalid default-addr-pool "10.0.0.1/8": the address has host bits, use 10.0.0.0/8`},
		"overlap":        {func(c *skepv1.ClusterSpec) { c.DefaultAddrPools = []string{"10.0.0.0/8", "10.1.0.0/16"} }, "default-addr-pool 10.1.0.0/16 overlaps 10.0.0.0/8: use pools apart from one another"},
		"node pool":      {func(c *skepv1.ClusterSpec) { c.NodeSubnetPool = "10.128.0.0/10" }, "node-subnet-pool 10.128.0.0/10 overlaps default-addr-pool 10.0.0.0/8: use pools apart from one another"},
		"node size":      {func(c *skepv1.ClusterSpec) { c.NodeSubnetSize = 10 }, "node-subnet-size 10 does not fit pool 100.64.0.0/10: use 11 to 28"},
	} {
		s := &skepv1.ClusterSpec{}
		c.edit(s)
		ClusterDefaults(s)
		err := ValidateCluster(s)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := &skepv1.ClusterSpec{}
	ClusterDefaults(s)
	if s.TaskHistoryLimit != 5 || s.HeartbeatPeriod.AsDuration() != time.Second || s.NodeSubnetPool != "100.64.0.0/10" || s.NodeSubnetSize != 23 {
		t.Errorf("defaults %v", s)
	}
}

func TestDiff(t *testing.T) {
	a := good()
	a.Task.Container.Env = []string{"A=1", "PASSWORD=old"}
	Defaults(a)
	b := proto.CloneOf(a)
	if d := Diff(a, b); d != "" {
		t.Fatalf("equal specs differ: %s", d)
	}
	b.Task.Container.Image = "httpd:2"
	b.Task.Container.Env = []string{"PASSWORD=hush", "B=2"}
	b.Task.Placement.Constraints = []string{"node.role==worker"}
	b.Mode = Replicated(3)
	b.Update.Order = skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST
	b.Update.Delay = durationpb.New(90 * time.Second)
	b.Task.ForceUpdate = 1
	b.Labels = map[string]string{"tier": "front"}
	got := Diff(a, b)
	want := "labels +tier=front; image httpd:latest -> httpd:2; env +B, -A, PASSWORD changed; constraints +node.role==worker; forced update 0 -> 1; replicas 1 -> 3; update delay 0s -> 1m30s; update order stop-first -> start-first"
	if got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	one, two := "@sha256:"+strings.Repeat("1", 64), "@sha256:"+strings.Repeat("2", 64)
	for _, x := range []struct{ a, b, want string }{
		{"httpd:1" + one, "httpd:2" + two, "image httpd:1 -> httpd:2"},
		{"httpd:1" + one, "httpd:1" + two, "image httpd:1@sha256:111111111111 -> httpd:1@sha256:222222222222"},
		{"httpd:1", "httpd:1" + two, "image httpd:1 -> httpd:1@sha256:222222222222"},
	} {
		a, b := proto.CloneOf(a), proto.CloneOf(a)
		a.Task.Container.Image, b.Task.Container.Image = x.a, x.b
		if got := Diff(a, b); got != x.want {
			t.Errorf("got %s, want %s", got, x.want)
		}
	}
	file := func(name string, version uint64) *skepv1.FileReference {
		return &skepv1.FileReference{Id: "id-" + name, Name: name, Target: name, Mode: 0o444, Version: version}
	}
	for _, x := range []struct {
		a, b []*skepv1.FileReference
		want string
	}{
		{[]*skepv1.FileReference{file("pw", 1), file("key", 3)}, []*skepv1.FileReference{file("pw", 2), file("key", 3)}, "secret pw version 1 -> 2"},
		{[]*skepv1.FileReference{file("pw", 1)}, []*skepv1.FileReference{file("key", 1)}, "secrets +key:key:292 -pw:pw:292"},
		{[]*skepv1.FileReference{file("pw", 1)}, []*skepv1.FileReference{file("pw", 2), file("key", 1)}, "secret pw version 1 -> 2; secrets +key:key:292"},
		{[]*skepv1.FileReference{file("pw", 1), file("key", 1)}, []*skepv1.FileReference{file("key", 1), file("pw", 1)}, "secrets changed"},
	} {
		a, b := proto.CloneOf(a), proto.CloneOf(a)
		a.Task.Container.Secrets, b.Task.Container.Secrets = x.a, x.b
		if got := Diff(a, b); got != x.want {
			t.Errorf("got %s, want %s", got, x.want)
		}
	}
	if proto.Equal(Core(a), Core(b)) {
		t.Fatal("different task specs are equal")
	}
	c := proto.CloneOf(b)
	c.Task.Container.RegistryAuth = "x"
	if !proto.Equal(Core(b), Core(c)) {
		t.Fatal("credentials make task specs differ")
	}
}

func TestNodeSpec(t *testing.T) {
	if err := ValidateNode(&skepv1.NodeSpec{Labels: map[string]string{"a b": ""}}); err == nil || err.Error() != "label 'a b' contains whitespaces" {
		t.Error(err)
	}
	if err := ValidateNode(&skepv1.NodeSpec{Availability: 7}); err == nil {
		t.Error("unknown availability accepted")
	}
	if err := ValidateName(RandomName()); err != nil {
		t.Error(err)
	}
}

// What is too large is named, and nothing of its value.
func TestCheckSize(t *testing.T) {
	long := strings.Repeat("x", 300<<10)
	for want, edit := range map[string]func(*skepv1.ServiceSpec){
		"are env (2 variables, the longest is BIG with 307204 bytes): at most 262144 fit; put large values into a config": func(s *skepv1.ServiceSpec) { s.Task.Container.Env = []string{"A=1", "BIG=" + long} },
		"are args: at most 262144 fit": func(s *skepv1.ServiceSpec) { s.Task.Container.Args = []string{long} },
		"are labels: at most":          func(s *skepv1.ServiceSpec) { s.Labels = map[string]string{"a": long} },
		"are seccomp-profile: at most": func(s *skepv1.ServiceSpec) {
			s.Task.Container.Privileges = &skepv1.Privileges{SeccompProfile: []byte(long)}
		},
	} {
		s := &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "i"}}}
		if err := CheckSize(s); err != nil {
			t.Error(err)
		}
		edit(s)
		if err := Validate(s); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
			t.Errorf("%.500v, want %s", err, want)
		}
	}
	s := &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "i", Env: []string{"BIG=" + strings.Repeat("x", 200<<10)}}}}
	if err := Validate(s); err != nil {
		t.Errorf("a variable of 200 KiB: %v", err)
	}
}

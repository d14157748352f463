package translate

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// The generators make what clients may send and skep keeps, in every form that the wire has for it: null, empty and left out.

var (
	genWord   = rapid.StringMatching(`[a-z][a-z0-9]{0,8}`)
	genText   = rapid.StringMatching(`[ -~]{0,12}`)
	genWords  = rapid.SliceOfN(genWord, 0, 3)
	genLabels = rapid.OneOf(rapid.Just(map[string]string(nil)), rapid.MapOfN(genWord, genText, 0, 3))
	genSpan   = rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "d"))
	})
	genID = rapid.StringMatching(`[a-z0-9]{25}`)
)

func maybe[T any](t *rapid.T, name string, g *rapid.Generator[T]) *T {
	if rapid.Bool().Draw(t, name+"?") {
		v := g.Draw(t, name)
		return &v
	}
	return nil
}

func oneOf[T any](t *rapid.T, name string, of ...T) T { return rapid.SampledFrom(of).Draw(t, name) }

// genSpec is a service's spec.
var genSpec = rapid.Custom(func(t *rapid.T) swarm.ServiceSpec {
	out := swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: genWord.Draw(t, "name"), Labels: genLabels.Draw(t, "labels")},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: genContainer(t), ForceUpdate: rapid.Uint64Range(0, 3).Draw(t, "force"), Runtime: oneOf[swarm.RuntimeType](t, "runtime", "", "container"),
			Resources: maybe(t, "resources", genRequirements), RestartPolicy: maybe(t, "restart", genRestart), Placement: maybe(t, "placement", genPlacement),
			LogDriver: maybe(t, "log", rapid.Custom(func(t *rapid.T) swarm.Driver {
				return swarm.Driver{Name: oneOf(t, "driver", "json-file", "local"), Options: genLabels.Draw(t, "options")}
			})),
		},
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "networks") {
		out.TaskTemplate.Networks = append(out.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{
			Target: fmt.Sprintf("net%d", i), Aliases: genWords.Draw(t, "aliases"), DriverOpts: genLabels.Draw(t, "opts")})
	}
	job := false
	switch rapid.IntRange(0, 4).Draw(t, "mode") {
	case 0:
		out.Mode.Replicated = &swarm.ReplicatedService{Replicas: maybe(t, "replicas", rapid.Uint64Range(0, 9))}
	case 1:
		out.Mode.Global = &swarm.GlobalService{}
	case 2:
		job = true
		out.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: maybe(t, "concurrent", rapid.Uint64Range(1, 9)), TotalCompletions: maybe(t, "total", rapid.Uint64Range(1, 9))}
	case 3:
		job = true
		out.Mode.GlobalJob = &swarm.GlobalJob{}
	}
	if !job {
		out.UpdateConfig = maybe(t, "update", genUpdate("pause", "continue", "rollback"))
		out.RollbackConfig = maybe(t, "rollback", genUpdate("pause", "continue"))
	}
	out.EndpointSpec = maybe(t, "endpoint", genEndpoint)
	return out
})

func genUpdate(actions ...swarm.FailureAction) *rapid.Generator[swarm.UpdateConfig] {
	return rapid.Custom(func(t *rapid.T) swarm.UpdateConfig {
		return swarm.UpdateConfig{
			Parallelism: rapid.Uint64Range(0, 9).Draw(t, "parallelism"), Delay: genSpan.Draw(t, "delay"), Monitor: genSpan.Draw(t, "monitor"),
			FailureAction: oneOf(t, "action", append(actions, "")...), MaxFailureRatio: rapid.Float32Range(0, 1).Draw(t, "ratio"),
			Order: oneOf[swarm.UpdateOrder](t, "order", "", "stop-first", "start-first"),
		}
	})
}

var genEndpoint = rapid.Custom(func(t *rapid.T) swarm.EndpointSpec {
	out := swarm.EndpointSpec{Mode: oneOf[swarm.ResolutionMode](t, "mode", "", "vip")}
	for i := range rapid.IntRange(0, 3).Draw(t, "ports") {
		out.Ports = append(out.Ports, swarm.PortConfig{
			Name: oneOf(t, "name", "", "http"), Protocol: oneOf[network.IPProtocol](t, "protocol", "", "tcp", "udp", "sctp"),
			TargetPort: uint32(80 + i), PublishedPort: oneOf(t, "published", 0, uint32(8080+i)), PublishMode: oneOf[swarm.PortConfigPublishMode](t, "publish", "", "ingress", "host"),
		})
	}
	return out
})

var genRequirements = rapid.Custom(func(t *rapid.T) swarm.ResourceRequirements {
	out := swarm.ResourceRequirements{
		Limits: maybe(t, "limits", rapid.Custom(func(t *rapid.T) swarm.Limit {
			return swarm.Limit{NanoCPUs: oneOf[int64](t, "cpu", 0, 2e9), MemoryBytes: oneOf[int64](t, "memory", 0, 64<<20), Pids: rapid.Int64Range(0, 100).Draw(t, "pids")}
		})),
		Reservations: maybe(t, "reservations", rapid.Custom(func(t *rapid.T) swarm.Resources {
			out := swarm.Resources{NanoCPUs: oneOf[int64](t, "cpu", 0, 1e9), MemoryBytes: oneOf[int64](t, "memory", 0, 16<<20)}
			for i := range rapid.IntRange(0, 2).Draw(t, "generic") {
				out.GenericResources = append(out.GenericResources, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: fmt.Sprintf("gpu%d", i), Value: int64(i + 1)}})
			}
			return out
		})),
		MemorySwappiness: maybe(t, "swappiness", rapid.Int64Range(0, 100)),
	}
	if out.Limits != nil && out.Limits.MemoryBytes > 0 {
		out.SwapBytes = maybe(t, "swap", rapid.Int64Range(-1, 1<<30))
	}
	return out
})

var genRestart = rapid.Custom(func(t *rapid.T) swarm.RestartPolicy {
	return swarm.RestartPolicy{Condition: oneOf[swarm.RestartPolicyCondition](t, "condition", "", "none", "on-failure", "any"),
		Delay: maybe(t, "delay", genSpan), MaxAttempts: maybe(t, "attempts", rapid.Uint64Range(0, 9)), Window: maybe(t, "window", genSpan)}
})

var genPlacement = rapid.Custom(func(t *rapid.T) swarm.Placement {
	out := swarm.Placement{}
	if rapid.Bool().Draw(t, "constrained") {
		out.Constraints = []string{"node.role==worker"}
	}
	if rapid.Bool().Draw(t, "spread") {
		out.Preferences = []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.rack"}}}
	}
	if rapid.Bool().Draw(t, "platform") {
		out.Platforms = []swarm.Platform{{Architecture: "amd64", OS: "linux"}}
	}
	return out
})

func genContainer(t *rapid.T) *swarm.ContainerSpec {
	out := &swarm.ContainerSpec{
		Image: oneOf(t, "image", "nginx:latest", "registry.example.com:5000/a/b:1", "nginx:1@sha256:"+fmt.Sprintf("%064x", 7)), Labels: genLabels.Draw(t, "labels"),
		Command: genWords.Draw(t, "command"), Args: rapid.SliceOfN(genText, 0, 3).Draw(t, "args"), Hostname: oneOf(t, "hostname", "", "h", "{{.Node.Hostname}}"),
		Dir: oneOf(t, "dir", "", "/srv"), User: oneOf(t, "user", "", "1000:1000"), Groups: genWords.Draw(t, "groups"), Init: maybe(t, "init", rapid.Bool()),
		StopSignal: oneOf(t, "signal", "", "SIGINT"), TTY: rapid.Bool().Draw(t, "tty"), OpenStdin: rapid.Bool().Draw(t, "stdin"), ReadOnly: rapid.Bool().Draw(t, "ro"),
		StopGracePeriod: maybe(t, "grace", genSpan), Isolation: oneOf[container.Isolation](t, "isolation", "", "default"), OomScoreAdj: rapid.Int64Range(-1000, 1000).Draw(t, "oom"),
		Healthcheck: maybe(t, "health", genHealth), DNSConfig: maybe(t, "dns", genDNS), Privileges: maybe(t, "privileges", genPrivileges),
		Sysctls: oneOf(t, "sysctls", nil, map[string]string{}, map[string]string{"net.core.somaxconn": "1024"}), CapabilityAdd: oneOf(t, "add", nil, []string{"CAP_NET_ADMIN"}),
		CapabilityDrop: oneOf(t, "drop", nil, []string{}, []string{"CAP_CHOWN"}), Hosts: oneOf(t, "hosts", nil, []string{"10.0.0.1 db"}),
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "env") {
		out.Env = append(out.Env, fmt.Sprintf("K%d=%s", i, genWord.Draw(t, "value")))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "mounts") {
		out.Mounts = append(out.Mounts, genMount(t, i))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "secrets") {
		out.Secrets = append(out.Secrets, &swarm.SecretReference{SecretID: genID.Draw(t, "id"), SecretName: fmt.Sprintf("s%d", i), File: &swarm.SecretReferenceFileTarget{
			Name: fmt.Sprintf("s%d", i), UID: oneOf(t, "uid", "0", "33"), GID: oneOf(t, "gid", "0", "33"), Mode: oneOf(t, "mode", os.FileMode(0o444), 0o400)}})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "configs") {
		out.Configs = append(out.Configs, &swarm.ConfigReference{ConfigID: genID.Draw(t, "id"), ConfigName: fmt.Sprintf("c%d", i), File: &swarm.ConfigReferenceFileTarget{
			Name: fmt.Sprintf("/etc/c%d", i), UID: "0", GID: "0", Mode: 0o444}})
	}
	if rapid.Bool().Draw(t, "ulimit") {
		out.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}}
	}
	return out
}

var genHealth = rapid.Custom(func(t *rapid.T) container.HealthConfig {
	if rapid.Bool().Draw(t, "none") {
		return container.HealthConfig{Test: []string{"NONE"}}
	}
	span := func(name string) time.Duration { return oneOf(t, name, 0, time.Second, 2500*time.Millisecond) }
	return container.HealthConfig{
		Test: oneOf(t, "test", nil, []string{}, []string{"CMD", "true", "-x"}, []string{"CMD-SHELL", "curl -f http://localhost/"}, []string{"HTTP", ":8080/healthz"},
			[]string{"TCP", ":5432"}, []string{"GRPC", ":9000"}, []string{"GRPC", ":9000/shop.v1.Cart"}),
		Interval: span("interval"), Timeout: span("timeout"), StartPeriod: span("period"), StartInterval: span("start"), Retries: rapid.IntRange(0, 9).Draw(t, "retries"),
	}
})

var genDNS = rapid.Custom(func(t *rapid.T) swarm.DNSConfig {
	return swarm.DNSConfig{Nameservers: oneOf(t, "servers", nil, []netip.Addr{}, []netip.Addr{netip.MustParseAddr("10.0.0.53"), netip.MustParseAddr("fd00::53")}),
		Search: oneOf(t, "search", nil, []string{"example.com"}), Options: oneOf(t, "options", nil, []string{"ndots:2"})}
})

var genPrivileges = rapid.Custom(func(t *rapid.T) swarm.Privileges {
	return swarm.Privileges{
		CredentialSpec: oneOf(t, "credential", nil, &swarm.CredentialSpec{File: "spec.json"}, &swarm.CredentialSpec{Config: "id"}, &swarm.CredentialSpec{Registry: "r"}),
		SELinuxContext: oneOf(t, "selinux", nil, &swarm.SELinuxContext{}), NoNewPrivileges: rapid.Bool().Draw(t, "nnp"),
		Seccomp:  oneOf(t, "seccomp", nil, &swarm.SeccompOpts{Mode: "unconfined"}, &swarm.SeccompOpts{Mode: "custom", Profile: []byte("{}")}),
		AppArmor: oneOf(t, "apparmor", nil, &swarm.AppArmorOpts{Mode: "disabled"}),
	}
})

func genMount(t *rapid.T, i int) mount.Mount {
	out := mount.Mount{Type: oneOf[mount.Type](t, "type", "bind", "volume", "tmpfs"), Target: fmt.Sprintf("/m%d", i), ReadOnly: rapid.Bool().Draw(t, "ro"),
		Consistency: oneOf[mount.Consistency](t, "consistency", "", "cached")}
	switch out.Type {
	case mount.TypeBind:
		out.Type = oneOf(t, "said", out.Type, "")
		out.Source, out.BindOptions = "/src", maybe(t, "bind", rapid.Custom(func(t *rapid.T) mount.BindOptions {
			b := mount.BindOptions{Propagation: oneOf(t, "propagation", append(mount.Propagations, "")...), CreateMountpoint: rapid.Bool().Draw(t, "create")}
			switch rapid.IntRange(0, 3).Draw(t, "recursive") {
			case 1:
				b.NonRecursive = true
			case 2:
				b.ReadOnlyNonRecursive = true
			case 3:
				b.ReadOnlyForceRecursive = true
			}
			return b
		}))
		if b := out.BindOptions; b != nil && (b.ReadOnlyNonRecursive || b.ReadOnlyForceRecursive) {
			out.ReadOnly = true
		}
	case mount.TypeVolume:
		out.Source, out.VolumeOptions = "data", maybe(t, "volume", rapid.Custom(func(t *rapid.T) mount.VolumeOptions {
			return mount.VolumeOptions{NoCopy: rapid.Bool().Draw(t, "nocopy"), Labels: genLabels.Draw(t, "labels"), Subpath: oneOf(t, "subpath", "", "a/b"),
				DriverConfig: oneOf(t, "driver", nil, &mount.Driver{}, &mount.Driver{Name: "rexray", Options: map[string]string{"size": "5"}})}
		}))
	case mount.TypeTmpfs:
		out.TmpfsOptions = maybe(t, "tmpfs", rapid.Custom(func(t *rapid.T) mount.TmpfsOptions {
			return mount.TmpfsOptions{SizeBytes: rapid.Int64Range(0, 1<<20).Draw(t, "size"), Mode: oneOf(t, "mode", os.FileMode(0), 0o1777, 0o755)}
		}))
	}
	return out
}

package compose

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/tree"
)

// verdict is what becomes of an attribute.
type verdict int

const (
	done    verdict = iota // as the compose specification or Docker Swarm says
	mapped                 // done in another way: the text says how
	passed                 // without effect, with a note
	refused                // with an error, or with a note under IgnoreUnsupported
)

func (v verdict) String() string { return [...]string{"done", "mapped", "noted", "refused"}[v] }

// attribute is one row of docs/compose.md.
type attribute struct {
	path    tree.Path // * is any name, [] any item
	verdict verdict
	text    string // mapped: how; noted and refused: why, and what to do
	free    bool   // what stands below it is the user's: any key
}

// attributes cover the compose specification: each path of its schema has a row, or stands below one that is noted or
// refused or free. What is on no row is refused.
var attributes = []attribute{
	{path: "version", verdict: mapped, text: "any is taken, none is needed"},
	{path: "name", verdict: passed, text: "the stack has the name that it is deployed with"},
	{path: "include", verdict: done},
	{path: "models", verdict: refused, text: "there are no model runners: run the model as a service"},
	{path: "jobs", verdict: refused, text: "write a service with deploy.mode replicated-job, and x-skep.schedule for its times"},

	{path: "services.*.annotations", verdict: refused, text: "there are no annotations: use labels"},
	{path: "services.*.attach", verdict: passed, text: "a deploy attaches to nothing"},
	{path: "services.*.blkio_config", verdict: refused, text: "disk bandwidth cannot be limited"},
	{path: "services.*.build", verdict: passed, text: "a stack builds no images: build it, push it, and name it in image"},
	{path: "services.*.cap_add", verdict: done},
	{path: "services.*.cap_drop", verdict: done},
	{path: "services.*.cgroup", verdict: refused, text: "a container has a cgroup of its own"},
	{path: "services.*.cgroup_parent", verdict: refused, text: "a container's cgroup is below skep's"},
	{path: "services.*.command", verdict: done},
	{path: "services.*.configs", verdict: done},
	{path: "services.*.configs.[].source", verdict: done},
	{path: "services.*.configs.[].target", verdict: done},
	{path: "services.*.configs.[].uid", verdict: done},
	{path: "services.*.configs.[].gid", verdict: done},
	{path: "services.*.configs.[].mode", verdict: done},
	{path: "services.*.container_name", verdict: mapped, text: "the containers are not named so; with one replica at most it is an alias on the service's networks"},
	{path: "services.*.cpu_count", verdict: refused, text: "use deploy.resources.limits.cpus"},
	{path: "services.*.cpu_percent", verdict: refused, text: "use deploy.resources.limits.cpus"},
	{path: "services.*.cpu_period", verdict: refused, text: "use deploy.resources.limits.cpus"},
	{path: "services.*.cpu_quota", verdict: refused, text: "use deploy.resources.limits.cpus"},
	{path: "services.*.cpu_rt_period", verdict: refused, text: "there is no real-time scheduling"},
	{path: "services.*.cpu_rt_runtime", verdict: refused, text: "there is no real-time scheduling"},
	{path: "services.*.cpu_shares", verdict: refused, text: "use deploy.resources.reservations.cpus"},
	{path: "services.*.cpus", verdict: mapped, text: "deploy.resources.limits.cpus"},
	{path: "services.*.cpuset", verdict: refused, text: "a service cannot be bound to processors"},
	{path: "services.*.credential_spec", verdict: refused, text: "it is for Windows"},
	{path: "services.*.depends_on", verdict: done},
	{path: "services.*.depends_on.*", verdict: done},
	{path: "services.*.depends_on.*.condition", verdict: mapped, text: "each time tasks start, not only on the first deploy; a service that must complete and has no deploy.mode becomes a job"},
	{path: "services.*.depends_on.*.required", verdict: done},
	{path: "services.*.depends_on.*.restart", verdict: passed, text: "a service is not restarted because one that it depends on was"},
	{path: "services.*.deploy", verdict: done},
	{path: "services.*.deploy.endpoint_mode", verdict: done},
	{path: "services.*.deploy.labels", verdict: done, free: true},
	{path: "services.*.deploy.mode", verdict: done},
	{path: "services.*.deploy.placement", verdict: done},
	{path: "services.*.deploy.placement.constraints", verdict: done},
	{path: "services.*.deploy.placement.max_replicas_per_node", verdict: done},
	{path: "services.*.deploy.placement.preferences", verdict: done},
	{path: "services.*.deploy.placement.preferences.[].spread", verdict: done},
	{path: "services.*.deploy.replicas", verdict: done},
	{path: "services.*.deploy.resources", verdict: done},
	{path: "services.*.deploy.resources.limits", verdict: done},
	{path: "services.*.deploy.resources.limits.cpus", verdict: done},
	{path: "services.*.deploy.resources.limits.memory", verdict: done},
	{path: "services.*.deploy.resources.limits.pids", verdict: done},
	{path: "services.*.deploy.resources.reservations", verdict: done},
	{path: "services.*.deploy.resources.reservations.cpus", verdict: done},
	{path: "services.*.deploy.resources.reservations.memory", verdict: done},
	{path: "services.*.deploy.resources.reservations.devices", verdict: refused, text: "devices are reserved as generic_resources"},
	{path: "services.*.deploy.resources.reservations.generic_resources", verdict: done},
	{path: "services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec", verdict: done},
	{path: "services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec.kind", verdict: done},
	{path: "services.*.deploy.resources.reservations.generic_resources.[].discrete_resource_spec.value", verdict: done},
	{path: "services.*.deploy.restart_policy", verdict: done},
	{path: "services.*.deploy.restart_policy.condition", verdict: done},
	{path: "services.*.deploy.restart_policy.delay", verdict: done},
	{path: "services.*.deploy.restart_policy.max_attempts", verdict: done},
	{path: "services.*.deploy.restart_policy.window", verdict: done},
	{path: "services.*.deploy.rollback_config", verdict: done},
	{path: "services.*.deploy.rollback_config.delay", verdict: done},
	{path: "services.*.deploy.rollback_config.failure_action", verdict: done},
	{path: "services.*.deploy.rollback_config.max_failure_ratio", verdict: done},
	{path: "services.*.deploy.rollback_config.monitor", verdict: done},
	{path: "services.*.deploy.rollback_config.order", verdict: done},
	{path: "services.*.deploy.rollback_config.parallelism", verdict: done},
	{path: "services.*.deploy.update_config", verdict: done},
	{path: "services.*.deploy.update_config.delay", verdict: done},
	{path: "services.*.deploy.update_config.failure_action", verdict: done},
	{path: "services.*.deploy.update_config.max_failure_ratio", verdict: done},
	{path: "services.*.deploy.update_config.monitor", verdict: done},
	{path: "services.*.deploy.update_config.order", verdict: done},
	{path: "services.*.deploy.update_config.parallelism", verdict: done},
	{path: "services.*.develop", verdict: passed, text: "it is for docker compose watch"},
	{path: "services.*.device_cgroup_rules", verdict: refused, text: "containers are given no devices"},
	{path: "services.*.devices", verdict: refused, text: "containers are given no devices"},
	{path: "services.*.dns", verdict: done},
	{path: "services.*.dns_opt", verdict: done},
	{path: "services.*.dns_search", verdict: done},
	{path: "services.*.domainname", verdict: refused, text: "write the whole name in hostname"},
	{path: "services.*.entrypoint", verdict: done},
	{path: "services.*.env_file", verdict: mapped, text: "read as it stands, as docker stack does: quotes, $ and # are a part of the value"},
	{path: "services.*.env_file.[].path", verdict: done},
	{path: "services.*.env_file.[].required", verdict: done},
	{path: "services.*.env_file.[].format", verdict: done},
	{path: "services.*.environment", verdict: done, free: true},
	{path: "services.*.expose", verdict: passed, text: "nothing is needed: tasks of one network reach each other on every port"},
	{path: "services.*.extends", verdict: done},
	{path: "services.*.extends.file", verdict: done},
	{path: "services.*.extends.service", verdict: done},
	{path: "services.*.external_links", verdict: refused, text: "put both services on one external network"},
	{path: "services.*.extra_hosts", verdict: done, free: true},
	{path: "services.*.gpus", verdict: refused, text: "devices are reserved as deploy.resources.reservations.generic_resources"},
	{path: "services.*.group_add", verdict: done},
	{path: "services.*.healthcheck", verdict: done},
	{path: "services.*.healthcheck.disable", verdict: done},
	{path: "services.*.healthcheck.interval", verdict: done},
	{path: "services.*.healthcheck.retries", verdict: done},
	{path: "services.*.healthcheck.start_interval", verdict: done},
	{path: "services.*.healthcheck.start_period", verdict: done},
	{path: "services.*.healthcheck.test", verdict: done},
	{path: "services.*.healthcheck.timeout", verdict: done},
	{path: "services.*.hostname", verdict: done},
	{path: "services.*.image", verdict: done},
	{path: "services.*.init", verdict: done},
	{path: "services.*.ipc", verdict: refused, text: "a container has an IPC namespace of its own"},
	{path: "services.*.isolation", verdict: done},
	{path: "services.*.label_file", verdict: mapped, text: "read as env_file is; labels wins"},
	{path: "services.*.labels", verdict: done, free: true},
	{path: "services.*.links", verdict: mapped, text: "an alias of the service that is linked to, on the networks that both have; the order of start is depends_on's"},
	{path: "services.*.logging", verdict: done},
	{path: "services.*.logging.driver", verdict: done},
	{path: "services.*.logging.options", verdict: done, free: true},
	{path: "services.*.mac_address", verdict: refused, text: "the cluster gives the addresses"},
	{path: "services.*.mem_limit", verdict: mapped, text: "deploy.resources.limits.memory"},
	{path: "services.*.mem_reservation", verdict: mapped, text: "deploy.resources.reservations.memory"},
	{path: "services.*.mem_swappiness", verdict: done},
	{path: "services.*.memswap_limit", verdict: mapped, text: "what is above the limit of memory is swap"},
	{path: "services.*.models", verdict: refused, text: "there are no model runners: run the model as a service"},
	{path: "services.*.network_mode", verdict: mapped, text: "host, none and bridge; a service's or container's network cannot be shared"},
	{path: "services.*.networks", verdict: done},
	{path: "services.*.networks.*", verdict: done},
	{path: "services.*.networks.*.aliases", verdict: done},
	{path: "services.*.networks.*.driver_opts", verdict: done, free: true},
	{path: "services.*.networks.*.gw_priority", verdict: passed, text: "the way out of a container is its node's"},
	{path: "services.*.networks.*.interface_name", verdict: refused, text: "the node names the interfaces"},
	{path: "services.*.networks.*.ipv4_address", verdict: mapped, text: "for a service with one replica at most"},
	{path: "services.*.networks.*.ipv6_address", verdict: mapped, text: "for a service with one replica at most"},
	{path: "services.*.networks.*.link_local_ips", verdict: refused, text: "the cluster gives the addresses"},
	{path: "services.*.networks.*.mac_address", verdict: refused, text: "the cluster gives the addresses"},
	{path: "services.*.networks.*.priority", verdict: passed, text: "networks are joined in the order of their names"},
	{path: "services.*.networks.*.use_service_name_alias", verdict: done},
	{path: "services.*.oom_kill_disable", verdict: refused, text: "a container without memory is ended"},
	{path: "services.*.oom_score_adj", verdict: done},
	{path: "services.*.pid", verdict: refused, text: "a container has a process tree of its own"},
	{path: "services.*.pids_limit", verdict: mapped, text: "deploy.resources.limits.pids"},
	{path: "services.*.platform", verdict: refused, text: "use a constraint on node.platform.os and node.platform.arch"},
	{path: "services.*.ports", verdict: mapped, text: "a range to one port is a port each"},
	{path: "services.*.ports.[].app_protocol", verdict: passed, text: "connections are passed on as they are"},
	{path: "services.*.ports.[].host_ip", verdict: mapped, text: "with mode host; the mesh listens on all addresses, so that ingress is refused"},
	{path: "services.*.ports.[].mode", verdict: done},
	{path: "services.*.ports.[].name", verdict: done},
	{path: "services.*.ports.[].protocol", verdict: done},
	{path: "services.*.ports.[].published", verdict: done},
	{path: "services.*.ports.[].target", verdict: done},
	{path: "services.*.post_start", verdict: refused, text: "there are no hooks: do it in the entrypoint"},
	{path: "services.*.pre_start", verdict: refused, text: "there are no hooks: use a job, and depends_on with service_completed_successfully"},
	{path: "services.*.pre_stop", verdict: refused, text: "there are no hooks: handle stop_signal"},
	{path: "services.*.privileged", verdict: refused, text: "no container has its node's rights: name what it needs in cap_add"},
	{path: "services.*.profiles", verdict: done},
	{path: "services.*.provider", verdict: refused, text: "there are no providers: run it as a service"},
	{path: "services.*.pull_policy", verdict: passed, text: "images are resolved by the deploy (--resolve-image) and fetched when a node lacks them"},
	{path: "services.*.pull_refresh_after", verdict: passed, text: "images are resolved by the deploy (--resolve-image) and fetched when a node lacks them"},
	{path: "services.*.read_only", verdict: done},
	{path: "services.*.restart", verdict: mapped, text: "deploy.restart_policy.condition, when there is no restart_policy: always and unless-stopped are any, no is none"},
	{path: "services.*.runtime", verdict: refused, text: "the node's runtime is used"},
	{path: "services.*.scale", verdict: mapped, text: "deploy.replicas"},
	{path: "services.*.secrets", verdict: done},
	{path: "services.*.secrets.[].source", verdict: done},
	{path: "services.*.secrets.[].target", verdict: done},
	{path: "services.*.secrets.[].uid", verdict: done},
	{path: "services.*.secrets.[].gid", verdict: done},
	{path: "services.*.secrets.[].mode", verdict: done},
	{path: "services.*.security_opt", verdict: mapped, text: "no-new-privileges, seccomp and apparmor=unconfined; others are refused"},
	{path: "services.*.shm_size", verdict: mapped, text: "a tmpfs of that size at /dev/shm"},
	{path: "services.*.stdin_open", verdict: done},
	{path: "services.*.stop_grace_period", verdict: done},
	{path: "services.*.stop_signal", verdict: done},
	{path: "services.*.storage_opt", verdict: refused, text: "a container's own disk space cannot be limited"},
	{path: "services.*.sysctls", verdict: done, free: true},
	{path: "services.*.tmpfs", verdict: done},
	{path: "services.*.tty", verdict: done},
	{path: "services.*.ulimits", verdict: done},
	{path: "services.*.ulimits.*", verdict: done},
	{path: "services.*.ulimits.*.hard", verdict: done},
	{path: "services.*.ulimits.*.soft", verdict: done},
	{path: "services.*.umask", verdict: refused, text: "the image's program sets it"},
	{path: "services.*.use_api_socket", verdict: refused, text: "containers are given no access to an engine"},
	{path: "services.*.user", verdict: done},
	{path: "services.*.userns_mode", verdict: refused, text: "containers have no user namespace of their own"},
	{path: "services.*.uts", verdict: refused, text: "a container has a host name of its own"},
	{path: "services.*.volumes", verdict: done},
	{path: "services.*.volumes.[].bind", verdict: done},
	{path: "services.*.volumes.[].bind.create_host_path", verdict: mapped, text: "a source that is missing is never made, as with docker stack: x-skep.create_source of the mount makes it"},
	{path: "services.*.volumes.[].bind.propagation", verdict: done},
	{path: "services.*.volumes.[].bind.recursive", verdict: done},
	{path: "services.*.volumes.[].bind.selinux", verdict: passed, text: "files are not labelled for SELinux"},
	{path: "services.*.volumes.[].consistency", verdict: passed, text: "it has a meaning on desktop machines only"},
	{path: "services.*.volumes.[].image", verdict: done},
	{path: "services.*.volumes.[].image.subpath", verdict: done},
	{path: "services.*.volumes.[].read_only", verdict: done},
	{path: "services.*.volumes.[].source", verdict: done},
	{path: "services.*.volumes.[].target", verdict: done},
	{path: "services.*.volumes.[].tmpfs", verdict: done},
	{path: "services.*.volumes.[].tmpfs.mode", verdict: done},
	{path: "services.*.volumes.[].tmpfs.size", verdict: done},
	{path: "services.*.volumes.[].type", verdict: mapped, text: "volume, bind, tmpfs and image; cluster and npipe are refused"},
	{path: "services.*.volumes.[].volume", verdict: done},
	{path: "services.*.volumes.[].volume.labels", verdict: done, free: true},
	{path: "services.*.volumes.[].volume.nocopy", verdict: done},
	{path: "services.*.volumes.[].volume.subpath", verdict: done},
	{path: "services.*.volumes_from", verdict: refused, text: "name the volume in both services"},
	{path: "services.*.working_dir", verdict: done},

	{path: "networks.*", verdict: done},
	{path: "networks.*.attachable", verdict: done},
	{path: "networks.*.driver", verdict: mapped, text: "overlay, the default; those of a single node are refused"},
	{path: "networks.*.driver_opts", verdict: done, free: true},
	{path: "networks.*.enable_ipv4", verdict: mapped, text: "every network has IPv4: false is refused"},
	{path: "networks.*.enable_ipv6", verdict: done},
	{path: "networks.*.external", verdict: done},
	{path: "networks.*.external.name", verdict: done},
	{path: "networks.*.internal", verdict: done},
	{path: "networks.*.ipam", verdict: done},
	{path: "networks.*.ipam.config", verdict: done},
	{path: "networks.*.ipam.config.[].aux_addresses", verdict: refused, text: "leave them out with ip_range"},
	{path: "networks.*.ipam.config.[].gateway", verdict: done},
	{path: "networks.*.ipam.config.[].ip_range", verdict: done},
	{path: "networks.*.ipam.config.[].subnet", verdict: done},
	{path: "networks.*.ipam.driver", verdict: mapped, text: "default alone"},
	{path: "networks.*.ipam.options", verdict: refused, text: "address management has no options"},
	{path: "networks.*.labels", verdict: done, free: true},
	{path: "networks.*.name", verdict: done},

	{path: "volumes.*", verdict: done},
	{path: "volumes.*.driver", verdict: done},
	{path: "volumes.*.driver_opts", verdict: done, free: true},
	{path: "volumes.*.external", verdict: done},
	{path: "volumes.*.external.name", verdict: done},
	{path: "volumes.*.labels", verdict: done, free: true},
	{path: "volumes.*.name", verdict: done},

	{path: "secrets.*", verdict: done},
	{path: "secrets.*.driver", verdict: refused, text: "there are no secret drivers: use file or environment"},
	{path: "secrets.*.driver_opts", verdict: refused, text: "there are no secret drivers: use file or environment"},
	{path: "secrets.*.environment", verdict: done},
	{path: "secrets.*.external", verdict: done},
	{path: "secrets.*.external.name", verdict: done},
	{path: "secrets.*.file", verdict: done},
	{path: "secrets.*.labels", verdict: done, free: true},
	{path: "secrets.*.name", verdict: done},
	{path: "secrets.*.template_driver", verdict: mapped, text: "golang alone"},

	{path: "configs.*", verdict: done},
	{path: "configs.*.content", verdict: done},
	{path: "configs.*.environment", verdict: done},
	{path: "configs.*.external", verdict: done},
	{path: "configs.*.external.name", verdict: done},
	{path: "configs.*.file", verdict: done},
	{path: "configs.*.labels", verdict: done, free: true},
	{path: "configs.*.name", verdict: done},
	{path: "configs.*.template_driver", verdict: mapped, text: "golang alone"},
}

// byPath finds a row: its key is a path whose names and numbers are * and [].
var byPath = func() map[tree.Path]attribute {
	out := map[tree.Path]attribute{}
	for _, a := range attributes {
		out[a.path] = a
	}
	for _, p := range []tree.Path{"services", "services.*", "networks", "volumes", "secrets", "configs"} {
		out[p] = attribute{path: p}
	}
	return out
}()

// userKeys have keys that the user chose.
var userKeys = map[tree.Path]bool{
	"services": true, "networks": true, "volumes": true, "secrets": true, "configs": true,
	"services.*.networks": true, "services.*.depends_on": true, "services.*.ulimits": true,
}

// rowOf is the row's key of a path.
func rowOf(path []string) tree.Path {
	row := tree.NewPath()
	for _, part := range path {
		if _, err := strconv.Atoi(part); err == nil {
			part = tree.PathMatchList
		}
		if userKeys[row] {
			part = "*"
		}
		row = row.Next(part)
	}
	return row
}

// walk reports every attribute of the merged model that is not done.
func (l *loading) walk(value any, path []string, row tree.Path) {
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			at, next := with(path, key), row.Next(key)
			if userKeys[row] {
				next = row.Next("*")
			}
			if strings.HasPrefix(key, "x-") && !userKeys[row] {
				l.extensionPlace(at, row, key)
				continue
			}
			a, known := byPath[next]
			switch {
			case !known:
				l.unsupported(at, "it is not known to this version of skep")
			case a.verdict == refused:
				if !empty(v[key]) {
					l.unsupported(at, "%s", a.text)
				}
			case a.verdict == passed:
				if !empty(v[key]) {
					l.noteAt(at, "it has no effect: %s", a.text)
				}
			case !a.free:
				l.walk(v[key], at, next)
			}
		}
	case []any:
		for i, item := range v {
			if m, ok := item.(map[string]any); ok {
				l.walk(m, with(path, itoa(i)), row.Next(tree.PathMatchList))
			}
		}
	}
}

// empty: the attribute says what holds without it too, as tools write it that print every attribute.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

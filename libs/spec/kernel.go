package spec

import (
	"slices"
	"strings"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// The rules of what a kernel gives a container. The API refuses by them, and so does the node.

// MinMemoryLimit is the least memory a container can be limited to, bytes: with less it does not start.
const MinMemoryLimit = 6 << 20

// maxFiles is the most open files that fs.nr_open can be set to.
const maxFiles = 2147483584

var ulimits = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

// CheckUlimit refuses a limit that no kernel sets.
func CheckUlimit(u *skepv1.Ulimit) error {
	switch {
	case !slices.Contains(ulimits, u.Name):
		return fault.Invalid("invalid ulimit type: %s: use one of %s", u.Name, strings.Join(ulimits, ", "))
	case u.Soft < -1 || u.Hard < -1:
		return fault.Invalid("invalid ulimit %s=%d:%d: use -1 for unlimited, or a number", u.Name, u.Soft, u.Hard)
	case u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1):
		return fault.Invalid("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
	case u.Name == "nofile" && (u.Hard == -1 || u.Hard > maxFiles):
		return fault.Invalid("invalid ulimit nofile=%d:%d: no kernel gives more than %d open files; use a number up to the nodes' fs.nr_open, such as nofile=1048576", u.Soft, u.Hard, maxFiles)
	}
	return nil
}

// ipcSysctls are those of a container's own IPC namespace that do not begin with fs.mqueue.
var ipcSysctls = []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}

// CheckSysctl refuses a kernel parameter that is not a container's own: one for the whole node.
func CheckSysctl(name string, hostNetwork bool) error {
	key := dotted(name)
	switch {
	case strings.HasPrefix(key, "net."):
		if hostNetwork {
			return fault.Invalid("invalid sysctl %s: tasks on network host share the node's own; set it on the nodes", name)
		}
	case key == "kernel.hostname":
		return fault.Invalid("invalid sysctl %s: use hostname", name)
	case key == "kernel.domainname", strings.HasPrefix(key, "fs.mqueue."), slices.Contains(ipcSysctls, key):
	default:
		return fault.Invalid("invalid sysctl %s: it is the whole node's, not a container's: set it on the nodes (sysctl -w %s=…); a container has its own net.*, fs.mqueue.*, kernel.domainname, %s", name, key, strings.Join(ipcSysctls, ", "))
	}
	return nil
}

// dotted is a parameter with dots between its parts: where a slash comes first, slashes are, and dots stand in names.
func dotted(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '.' {
		return name
	}
	return strings.NewReplacer("/", ".", ".", "/").Replace(name)
}

// HostNetwork: the tasks share the network of their node.
func HostNetwork(s *skepv1.ServiceSpec) bool {
	return slices.ContainsFunc(s.GetTask().GetNetworks(), func(n *skepv1.NetworkAttachment) bool { return Predefined(n.GetTarget()) == NetworkHost })
}

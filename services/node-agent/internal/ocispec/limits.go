package ocispec

import (
	"fmt"
	"sort"
	"strings"

	ctrdcap "github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// defaultCaps is docker's set.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// Capabilities applies adds and drops to docker's default set. ALL on either side means what it says.
func Capabilities(add, drop []string, have []string) ([]string, error) {
	known := ctrdcap.Known()
	if have == nil {
		have = known
	}
	has := toSet(have)
	norm := func(list []string) (map[string]bool, error) {
		out := map[string]bool{}
		for _, c := range list {
			c = strings.ToUpper(strings.TrimSpace(c))
			if c == "ALL" || c == "CAP_ALL" {
				out["ALL"] = true
				continue
			}
			if !strings.HasPrefix(c, "CAP_") {
				c = "CAP_" + c
			}
			if !toSet(known)[c] {
				return nil, fmt.Errorf("invalid capability %q", c)
			}
			out[c] = true
		}
		return out, nil
	}
	adds, err := norm(add)
	if err != nil {
		return nil, err
	}
	drops, err := norm(drop)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	switch {
	case adds["ALL"]:
		for _, c := range have {
			if !drops[c] {
				out[c] = true
			}
		}
	case drops["ALL"]:
	default:
		for _, c := range defaultCaps {
			if has[c] && !drops[c] {
				out[c] = true
			}
		}
	}
	for c := range adds {
		if c == "ALL" || drops[c] {
			continue
		}
		if !has[c] {
			return nil, fmt.Errorf("capability %s cannot be given: this node's agent does not have it itself", c)
		}
		out[c] = true
	}
	list := make([]string, 0, len(out))
	for c := range out {
		list = append(list, c)
	}
	sort.Strings(list)
	return list, nil
}

func toSet(l []string) map[string]bool {
	m := make(map[string]bool, len(l))
	for _, s := range l {
		m[s] = true
	}
	return m
}

func capabilities(s *oci.Spec, c *skepv1.ContainerSpec, h Host) error {
	list, err := Capabilities(c.GetCapabilityAdd(), c.GetCapabilityDrop(), h.Caps)
	if err != nil {
		return err
	}
	// What execve would leave a user who is not root.
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: list}
	if s.Process.User.UID == 0 {
		s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = list, list
	}
	return nil
}

var ulimitNames = map[string]string{
	"as": "RLIMIT_AS", "core": "RLIMIT_CORE", "cpu": "RLIMIT_CPU", "data": "RLIMIT_DATA", "fsize": "RLIMIT_FSIZE",
	"locks": "RLIMIT_LOCKS", "memlock": "RLIMIT_MEMLOCK", "msgqueue": "RLIMIT_MSGQUEUE", "nice": "RLIMIT_NICE",
	"nofile": "RLIMIT_NOFILE", "nproc": "RLIMIT_NPROC", "rss": "RLIMIT_RSS", "rtprio": "RLIMIT_RTPRIO",
	"rttime": "RLIMIT_RTTIME", "sigpending": "RLIMIT_SIGPENDING", "stack": "RLIMIT_STACK",
}

func rlimits(s *oci.Spec, c *skepv1.ContainerSpec, h Host) error {
	s.Process.Rlimits = nil // inherited, not the base spec's 1024 files
	for _, u := range c.GetUlimits() {
		if err := spec.CheckUlimit(u); err != nil {
			return err
		}
		name := u.GetName()
		typ := ulimitNames[name]
		hard, soft := uint64(u.GetHard()), uint64(u.GetSoft()) // -1 = unlimited = the largest number
		if name == "nofile" && h.MaxFiles > 0 && hard > h.MaxFiles {
			return fmt.Errorf("ulimit nofile: the hard limit %s is above what this node's kernel gives, %d; lower it or raise fs.nr_open on the node", limitText(u.GetHard()), h.MaxFiles)
		}
		if top, ok := h.HardLimit[name]; ok && !h.SysResource && hard > top {
			return fmt.Errorf("ulimit %s: the hard limit %s is above what this node's agent may give, %d; lower it or raise the agent's own limit", name, limitText(u.GetHard()), top)
		}
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: typ, Hard: hard, Soft: soft})
	}
	return nil
}

func limitText(n int64) string {
	if n < 0 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}

func resources(s *oci.Spec, in Input) error {
	r := in.Service.GetTask().GetResources()
	lim, res := r.GetLimits(), s.Linux.Resources
	if res == nil {
		res = &specs.LinuxResources{}
		s.Linux.Resources = res
	}
	if n := lim.GetNanoCpus(); n > 0 {
		period := uint64(100_000)
		quota := max(n*int64(period)/1e9, 1000) // the kernel's smallest quota is 1 ms
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if m := lim.GetMemoryBytes(); m > 0 {
		if m < spec.MinMemoryLimit {
			return fmt.Errorf("memory limit %d: the smallest a container can have is %d bytes", m, spec.MinMemoryLimit)
		}
		mem := &specs.LinuxMemory{Limit: &m}
		if in.Limits.Swap {
			total := m + max(r.GetSwapBytes(), 0)
			if r.GetSwapBytes() < 0 && r.SwapBytes != nil {
				total = -1
			}
			mem.Swap = &total
		}
		res.Memory = mem
	}
	if m := r.GetReservations().GetMemoryBytes(); m > 0 {
		if res.Memory == nil {
			res.Memory = &specs.LinuxMemory{}
		}
		if res.Memory.Limit == nil || m <= *res.Memory.Limit {
			res.Memory.Reservation = &m
		}
	}
	if r.GetMemorySwappiness() >= 0 && r != nil && r.MemorySwappiness != nil && !in.Limits.CgroupV2 {
		if res.Memory == nil {
			res.Memory = &specs.LinuxMemory{}
		}
		n := uint64(r.GetMemorySwappiness())
		res.Memory.Swappiness = &n
	}
	if n := lim.GetPids(); n > 0 {
		res.Pids = &specs.LinuxPids{Limit: &n}
	}
	return nil
}

// SetUserCaps gives a process the capabilities of its user out of those it may have.
func SetUserCaps(p *specs.Process) {
	if p.Capabilities == nil {
		return
	}
	c := *p.Capabilities
	c.Effective, c.Permitted = nil, nil
	if p.User.UID == 0 {
		c.Effective, c.Permitted = c.Bounding, c.Bounding
	}
	p.Capabilities = &c
}

package ocispec

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	ctrdcap "github.com/containerd/containerd/v2/pkg/cap"
	"golang.org/x/sys/unix"
)

const goarch = runtime.GOARCH

var resourceNumbers = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// ThisHost finds out what this process may give to containers.
func ThisHost() Host {
	h := Host{HardLimit: map[string]uint64{}}
	var st unix.Statfs_t
	h.CgroupV2 = unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	if h.CgroupV2 {
		h.Swap = true
	} else {
		_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		h.Swap = err == nil
	}
	if caps, err := ctrdcap.Current(); err == nil {
		h.Caps = caps
		h.SysResource = slices.Contains(caps, "CAP_SYS_RESOURCE")
	} else {
		h.SysResource = true // cannot tell: let the kernel decide
	}
	for name, n := range resourceNumbers {
		var r unix.Rlimit
		if unix.Getrlimit(n, &r) == nil {
			h.HardLimit[name] = r.Max
		}
	}
	if b, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		h.MaxFiles, _ = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // 0 = not known
	}
	return h
}

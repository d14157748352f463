package daemon

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// LimitMemory tells the collector how much memory this process may use, unless GOMEMLIMIT in the environment does: nine
// tenths of what its control group may, or half of the machine, the rest of which is the containers'. A burst then costs
// collections rather than the process.
func LimitMemory(log *zap.Logger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	n := memoryLimit("/")
	if n == 0 {
		return
	}
	debug.SetMemoryLimit(n)
	log.Debug("memory limit", zap.Int64("bytes", n))
}

// memoryLimit reads the machine's memory and the control group's limit below root, 0 when neither is known.
func memoryLimit(root string) int64 {
	limit := int64(math.MaxInt64)
	if n := memTotal(filepath.Join(root, "proc/meminfo")); n > 0 {
		limit = n / 2
	}
	if n := groupLimit(root); n > 0 {
		limit = min(limit, n/10*9)
	}
	if limit == math.MaxInt64 {
		return 0
	}
	return limit
}

func memTotal(path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // read only
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if w := strings.Fields(sc.Text()); len(w) == 3 && w[0] == "MemTotal:" {
			n, _ := strconv.ParseInt(w[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// groupLimit is the lowest limit of the process's control group and those above it, 0 without one. Of version 1 it looks
// at the group alone.
func groupLimit(root string) int64 {
	body, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	lowest := int64(0)
	take := func(path string) {
		b, err := os.ReadFile(filepath.Join(root, path))
		n, bad := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is none
		if err == nil && bad == nil && n > 0 && (lowest == 0 || n < lowest) {
			lowest = n
		}
	}
	for line := range strings.Lines(string(body)) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(w) != 3:
		case w[0] == "0" && w[1] == "":
			for dir := filepath.Clean("/" + w[2]); ; dir = filepath.Dir(dir) {
				take(filepath.Join("sys/fs/cgroup", dir, "memory.max"))
				if dir == "/" {
					break
				}
			}
		case w[1] == "memory":
			take(filepath.Join("sys/fs/cgroup/memory", filepath.Clean("/"+w[2]), "memory.limit_in_bytes"))
		}
	}
	return lowest
}

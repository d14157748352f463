package daemon

import (
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// NoCores keeps what this process has in memory, keys and secrets among it, out of core dumps, and out of reach of
// debuggers of other users. It concerns the process alone: a program that it starts is as it would be otherwise.
//
// limit lowers the limit of core files to 0 as well, which programs that it starts inherit: not for one that starts
// containerd, whose containers may want theirs. Without it the kernel writes no core either.
func NoCores(log *zap.Logger, limit bool) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("a core dump of this process would show its keys", zap.Error(err))
	}
	if !limit {
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		log.Warn("the limit of core files stays as it is", zap.Error(err))
	}
}

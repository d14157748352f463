// Package sctp says what this host's kernel can do with SCTP, which many kernels are built or installed without.
//
// It looks and loads nothing: to ask the kernel for a socket would load its module on every node, which administrators
// who know its history forbid.
package sctp

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Plugin is what a node that can do both is described with: a plugin of type PluginType.
const (
	PluginType = "Network"
	Plugin     = "sctp"
)

// Ability is what a kernel can do.
type Ability struct {
	// Tracked: SCTP connections are tracked, without which they cannot be sent to tasks.
	Tracked bool
	// Sockets: programs can ask the kernel for SCTP sockets. Those that bring SCTP themselves need none.
	Sockets bool
}

// Kernel is what this host's kernel can do. What cannot be found out, it can.
func Kernel() Ability {
	var u unix.Utsname
	release := ""
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	return look("/", release)
}

func look(root, release string) Ability {
	const conntrack = "proc/sys/net/netfilter/nf_conntrack_"
	a := Ability{
		// Without any connection tracking yet, nobody can tell what kinds there will be.
		Tracked: there(root, conntrack+"sctp_timeout_established") || !there(root, conntrack+"max"),
	}
	protocols, err := os.ReadFile(filepath.Join(root, "proc/thread-self/net/protocols"))
	a.Sockets = err != nil || slices.ContainsFunc(strings.Split(string(protocols), "\n"), func(line string) bool {
		name, _, _ := strings.Cut(line, " ")
		return name == "SCTP"
	})
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		b, err := os.ReadFile(filepath.Join(root, "lib/modules", release, list))
		a.Sockets = a.Sockets || err == nil && bytes.Contains(b, []byte("/net/sctp/sctp.ko"))
	}
	return a
}

func there(root, path string) bool {
	_, err := os.Stat(filepath.Join(root, path))
	return !errors.Is(err, fs.ErrNotExist)
}

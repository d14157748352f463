package sctp

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLook(t *testing.T) {
	const (
		tracking  = "proc/sys/net/netfilter/nf_conntrack_max"
		tracked   = "proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established"
		protocols = "proc/thread-self/net/protocols"
		dep       = "lib/modules/6.1/modules.dep"
		header    = "protocol  size sockets  memory press maxhdr  slab module\n"
	)
	for name, x := range map[string]struct {
		files map[string]string
		want  Ability
	}{
		"both are built in":          {map[string]string{tracking: "", tracked: "", protocols: header + "TCP 1\nSCTP 1\n"}, Ability{true, true}},
		"a module that can be had":   {map[string]string{tracking: "", tracked: "", protocols: header + "TCP 1\n", dep: "kernel/net/sctp/sctp_diag.ko.xz: x\nkernel/net/sctp/sctp.ko.xz: y\n"}, Ability{true, true}},
		"a module that is not there": {map[string]string{tracking: "", tracked: "", protocols: header + "SCTPv6ish 1\n", dep: "kernel/net/sctp/sctp_diag.ko.xz: x\n"}, Ability{true, false}},
		"neither":                    {map[string]string{tracking: "", protocols: header + "TCP 1\n"}, Ability{false, false}},
		"nobody tracks anything yet": {map[string]string{protocols: header + "SCTP 1\n"}, Ability{true, true}},
		"nothing can be read":        {nil, Ability{true, true}},
	} {
		root := t.TempDir()
		for path, text := range x.files {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := look(root, "6.1"); got != x.want {
			t.Errorf("%s: %+v, want %+v", name, got, x.want)
		}
	}
}

// TestKernel: where the kernel gives a socket, it was found to be able to.
func TestKernel(t *testing.T) {
	a := Kernel()
	t.Logf("this kernel: %+v", a)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return
	}
	_ = unix.Close(fd)
	if !a.Sockets {
		t.Error("it has SCTP sockets, and was found to have none")
	}
}

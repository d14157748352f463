package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// needsHelper are file systems that mount(8) leaves to programs of their own, and the packages that have those.
var needsHelper = map[string]string{
	"nfs": "nfs-common (Debian, Ubuntu) or nfs-utils", "nfs4": "nfs-common (Debian, Ubuntu) or nfs-utils",
	"cifs": "cifs-utils", "smb3": "cifs-utils", "glusterfs": "glusterfs-client", "ceph": "ceph-common", "davfs": "davfs2",
	"sshfs": "sshfs", "fuse.sshfs": "sshfs", "lustre": "lustre-client",
}

// mount mounts what a volume's options name, in a process of its own that is ended when it takes too long.
func (s *Store) mount(ctx context.Context, name string, opts map[string]string) error {
	o, err := parseOptions(opts)
	if err != nil {
		return fmt.Errorf("mount volume %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limit)
	defer cancel()
	if err := o.resolve(ctx); err != nil {
		return fmt.Errorf("mount volume %s on node %s: %w", name, s.cfg.Node, err)
	}
	cmd, err := s.mountCommand(o, s.data(name))
	if err != nil {
		return fmt.Errorf("mount volume %s on node %s: %w", name, s.cfg.Node, err)
	}
	said, err := run(ctx, cmd)
	if err == nil {
		return nil
	}
	// A helper that was killed may have been done.
	if uerr := s.unmount(name); uerr != nil {
		err = errors.Join(err, uerr)
	}
	for _, secret := range o.secrets() {
		said = strings.ReplaceAll(said, secret, hidden)
	}
	device := Shown(map[string]string{"device": o.device})["device"]
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("mount volume %s on node %s: %s (%s) did not answer within %s: is its server there? %s", name, s.cfg.Node, device, o.typ, s.cfg.Limit, said)
	case said != "":
		return fmt.Errorf("mount volume %s on node %s: %s", name, s.cfg.Node, said)
	}
	return fmt.Errorf("mount volume %s on node %s: %s (%s): %w", name, s.cfg.Node, device, o.typ, err)
}

func (s *Store) mountCommand(o *options, at string) (*exec.Cmd, error) {
	env := []string{"PATH=" + s.cfg.Path, "LC_ALL=C"}
	list := make([]string, 0, len(o.o))
	for _, one := range o.o {
		key, value, _ := strings.Cut(one, "=")
		if o.typ == "cifs" || o.typ == "smb3" {
			if key == "password" || key == "pass" {
				env = append(env, "PASSWD="+value) // not an argument, which everybody on the machine can read
				continue
			}
		}
		list = append(list, one)
	}
	if helper := s.find("mount." + o.typ); helper != "" {
		args := []string{o.device, at}
		if len(list) > 0 {
			args = append(args, "-o", strings.Join(list, ","))
		}
		return command(env, helper, args...), nil
	}
	if pkg := needsHelper[o.typ]; pkg != "" {
		return nil, fmt.Errorf("the program mount.%s is missing: install the package %s on that node", o.typ, pkg)
	}
	mount := s.find("mount")
	if mount == "" {
		return nil, errors.New("the program mount is missing: install the package mount (Debian, Ubuntu) or util-linux on that node")
	}
	args := []string{"-t", o.typ}
	if len(list) > 0 {
		args = append(args, "-o", strings.Join(list, ","))
	}
	return command(env, mount, append(args, "--", o.device, at)...), nil
}

func (s *Store) find(program string) string {
	for _, dir := range append(filepath.SplitList(s.cfg.Path), "/usr/sbin", "/sbin") {
		p := filepath.Join(dir, program)
		if st, err := os.Stat(p); filepath.IsAbs(dir) && err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

func command(env []string, program string, args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Env, c.Dir = env, "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

// maxSaid bounds what is kept of a program's words, bytes.
const maxSaid = 1024

type words struct{ b []byte }

func (w *words) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), maxSaid-len(w.b))]...)
	return len(p), nil
}

// run runs a program and what it starts until ctx ends, and returns what it said. One that cannot be killed, since the
// kernel waits for a dead server in its name, is left behind.
func run(ctx context.Context, c *exec.Cmd) (string, error) {
	out := &words{}
	c.Stdout, c.Stderr = out, out
	c.WaitDelay = time.Second
	if err := c.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	text := func() string { return strings.Join(strings.Fields(string(out.b)), " ") }
	select {
	case err := <-ended:
		return text(), err
	case <-ctx.Done():
	}
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // it may just have ended
	select {
	case err := <-ended:
		return text(), errors.Join(ctx.Err(), err)
	case <-time.After(3 * time.Second):
		return "", ctx.Err()
	}
}

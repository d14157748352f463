// Package ocispec turns a task into an OCI runtime spec. It is pure: what it needs to know of the image, the
// node and the network is handed in, so every rule of it is tested without a container.
//
// It refuses, with a sentence for the user, what the kernel would refuse later with a number: a ulimit above what
// the agent itself may have, an unknown capability, a relative path. no_new_privileges is set only when the spec asks:
// it would break setuid programs (sudo, ping) in images that work under Docker.
package ocispec

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Input is everything a spec is made from.
type Input struct {
	Names   Names
	Service *skepv1.ServiceSpec
	Record  *skepv1.TaskRecord

	Image v1.ImageConfig
	// Passwd and Group are the image's own files; empty when it has none.
	Passwd, Group []byte

	Netns  string // "" = the host's network
	Cgroup string // path of the task's cgroup
	Init   string // host path of the init binary, "" = none on this node

	// Host paths of the generated files.
	Hosts, Resolv, Hostname string
	// Mounts are the user's, already resolved to host paths.
	Mounts []specs.Mount

	Limits Host
}

// Host is what this node can give.
type Host struct {
	CgroupV2 bool
	Swap     bool     // memory+swap is accounted
	Caps     []string // what the agent itself may pass on; nil = everything known
	// HardLimit is the highest value of a ulimit, by docker's name; missing = no bound known.
	HardLimit map[string]uint64
	// MaxFiles is the kernel's own bound of nofile (fs.nr_open), which no capability raises; 0 = not known.
	MaxFiles uint64
	// Privileged resources: with CAP_SYS_RESOURCE no hard limit binds.
	SysResource bool
}

// Build makes the spec.
func Build(in Input) (*oci.Spec, error) {
	c := in.Service.GetTask().GetContainer()
	ctx := namespaces.WithNamespace(context.Background(), "skep")
	s, err := oci.GenerateSpecWithPlatform(ctx, nil, "linux/"+in.Names.Node.Platform.Architecture, &containers.Container{ID: in.Record.GetId()})
	if err != nil {
		return nil, fmt.Errorf("base spec: %w", err)
	}
	hostname, err := in.Names.Hostname(c.GetHostname())
	if err != nil {
		return nil, err
	}
	s.Hostname = hostname
	s.Root = &specs.Root{Path: "rootfs", Readonly: c.GetReadOnly()}
	s.Linux.CgroupsPath = in.Cgroup
	if err := process(s, in, c, hostname); err != nil {
		return nil, err
	}
	if err := setUser(s, in, c); err != nil {
		return nil, err
	}
	if err := capabilities(s, c, in.Limits); err != nil {
		return nil, err
	}
	if err := rlimits(s, c, in.Limits); err != nil {
		return nil, err
	}
	if err := resources(s, in); err != nil {
		return nil, err
	}
	if err := namespacesOf(s, in); err != nil {
		return nil, err
	}
	if err := mounts(s, in, c); err != nil {
		return nil, err
	}
	return s, security(s, c)
}

// Args is what the container runs: docker's rules of entrypoint and command.
func Args(c *skepv1.ContainerSpec, img v1.ImageConfig) ([]string, error) {
	var args []string
	switch {
	case len(c.GetCommand()) > 0:
		args = append(append(args, c.Command...), c.GetArgs()...)
	case len(c.GetArgs()) > 0:
		args = append(append(args, img.Entrypoint...), c.Args...)
	default:
		args = append(append(args, img.Entrypoint...), img.Cmd...)
	}
	if len(args) == 0 || args[0] == "" {
		return nil, errors.New("no command specified: the image has none, give the service one")
	}
	return args, nil
}

func process(s *oci.Spec, in Input, c *skepv1.ContainerSpec, hostname string) error {
	args, err := Args(c, in.Image)
	if err != nil {
		return err
	}
	p := s.Process
	p.Args = args
	p.Terminal = c.GetTty()
	p.Cwd = "/"
	if in.Image.WorkingDir != "" {
		p.Cwd = in.Image.WorkingDir
	}
	if c.GetDir() != "" {
		p.Cwd = c.Dir
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("the working directory %q is not an absolute path", p.Cwd)
	}
	p.Env, err = Environment(in, hostname)
	if err != nil {
		return err
	}
	if c.GetInit() {
		if in.Init == "" {
			return errors.New("the service asks for an init (--init), and this node has no skep-init: install it beside the agent or in /usr/lib/skep/bin")
		}
		p.Args = append([]string{"/dev/init", "--"}, args...)
	}
	if adj := c.GetOomScoreAdj(); adj != 0 {
		if adj < -1000 || adj > 1000 {
			return fmt.Errorf("oom score adjustment %d is not between -1000 and 1000", adj)
		}
		if adj < 0 && !in.Limits.SysResource {
			return fmt.Errorf("oom score adjustment %d: this node may not lower it (no CAP_SYS_RESOURCE)", adj)
		}
		n := int(adj)
		p.OOMScoreAdj = &n
	} else {
		p.OOMScoreAdj = nil
	}
	return nil
}

// Environment is the container's, NAME=value.
func Environment(in Input, hostname string) ([]string, error) {
	c := in.Service.GetTask().GetContainer()
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + hostname}
	if c.GetTty() {
		env = append(env, "TERM=xterm")
	}
	for _, kv := range in.Image.Env {
		env = SetEnv(env, kv)
	}
	for _, r := range in.Record.GetAssigned() {
		value := strings.Join(r.GetNamed(), ",")
		if value == "" {
			value = fmt.Sprint(r.GetValue())
		}
		env = SetEnv(env, "DOCKER_RESOURCE_"+strings.ToUpper(r.GetKind())+"="+value)
	}
	for _, kv := range c.GetEnv() {
		key, value, ok := strings.Cut(kv, "=")
		if ok {
			var err error
			if value, err = in.Names.Expand(value); err != nil {
				return nil, fmt.Errorf("environment variable %s: %w", key, err)
			}
			kv = key + "=" + value
		}
		env = SetEnv(env, kv)
	}
	return env, nil
}

// Getenv is a variable's value, "" when there is none.
func Getenv(env []string, name string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

// SetEnv replaces or adds KEY=value; a bare KEY removes it.
func SetEnv(env []string, kv string) []string {
	key, _, ok := strings.Cut(kv, "=")
	for i, have := range env {
		if k, _, _ := strings.Cut(have, "="); k == key {
			if !ok {
				return append(env[:i:i], env[i+1:]...)
			}
			env[i] = kv
			return env
		}
	}
	if ok {
		env = append(env, kv)
	}
	return env
}

func namespacesOf(s *oci.Spec, in Input) error {
	out := s.Linux.Namespaces[:0]
	for _, ns := range s.Linux.Namespaces {
		switch ns.Type {
		case specs.NetworkNamespace:
			if in.Netns == "" {
				continue
			}
			ns.Path = in.Netns
		case specs.CgroupNamespace:
			continue
		}
		out = append(out, ns)
	}
	if in.Limits.CgroupV2 {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Namespaces = out
	s.Linux.Sysctl = map[string]string{}
	if in.Netns != "" {
		// As docker does: no privilege is needed for a low port or an echo inside the container's own network.
		s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "0"
		s.Linux.Sysctl["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range in.Service.GetTask().GetContainer().GetSysctls() {
		if err := spec.CheckSysctl(k, in.Netns == ""); err != nil {
			return err
		}
		s.Linux.Sysctl[k] = v
	}
	return nil
}

func security(s *oci.Spec, c *skepv1.ContainerSpec) error {
	p := c.GetPrivileges()
	s.Process.NoNewPrivileges = p.GetNoNewPrivileges()
	switch p.GetSeccompMode() {
	case "", "default":
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	case "unconfined":
		s.Linux.Seccomp = nil
	case "custom":
		profile, err := customSeccomp(p.GetSeccompProfile(), s)
		if err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
		s.Linux.Seccomp = profile
	default:
		return fmt.Errorf("unknown seccomp mode %q: use default, unconfined or custom", p.GetSeccompMode())
	}
	if p.GetCredentialSpec() != "" {
		return errors.New("credential specs are for Windows containers")
	}
	return nil
}

func mounts(s *oci.Spec, in Input, c *skepv1.ContainerSpec) error {
	user := append([]specs.Mount(nil), in.Mounts...)
	for dst, src := range map[string]string{"/etc/hosts": in.Hosts, "/etc/resolv.conf": in.Resolv, "/etc/hostname": in.Hostname} {
		if src != "" && !targets(in.Mounts, dst) {
			user = append(user, specs.Mount{Destination: dst, Type: "bind", Source: src, Options: []string{"rbind", "rprivate"}})
		}
	}
	if c.GetInit() {
		user = append(user, specs.Mount{Destination: "/dev/init", Type: "bind", Source: in.Init, Options: []string{"bind", "ro", "rprivate"}})
	}
	// A parent before what is mounted inside it.
	sort.SliceStable(user, func(i, j int) bool {
		a, b := path.Clean(user[i].Destination), path.Clean(user[j].Destination)
		if d := strings.Count(a, "/") - strings.Count(b, "/"); d != 0 {
			return d < 0
		}
		return a < b
	})
	var out []specs.Mount
	for _, m := range s.Mounts {
		// A tmpfs on /run hides what images keep there (/run/lock, /run/mysqld): docker has none.
		if m.Destination == "/run" || targets(user, m.Destination) {
			continue
		}
		out = append(out, m)
	}
	// With the host's network as with any other: a bind of the host's /sys would bring every mount below it, and the
	// host's cgroups with them.
	if !targets(user, "/sys/fs/cgroup") {
		out = append(out, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}})
		if !in.Limits.CgroupV2 {
			// With cgroup v1 that is a tmpfs of runc's with a read-only mount per controller: it holds no files of a container.
			s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/sys/fs/cgroup")
		}
	}
	s.Mounts = append(out, user...)
	for _, m := range user {
		for _, o := range m.Options {
			switch {
			case o == "rshared" || o == "shared":
				s.Linux.RootfsPropagation = "rshared"
			case (o == "rslave" || o == "slave") && s.Linux.RootfsPropagation != "rshared":
				s.Linux.RootfsPropagation = "rslave"
			}
		}
	}
	return nil
}

func targets(ms []specs.Mount, dst string) bool {
	for _, m := range ms {
		if path.Clean(m.Destination) == dst {
			return true
		}
	}
	return false
}

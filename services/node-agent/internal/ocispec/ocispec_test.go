package ocispec

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	skepv1 "skep.dev/proto/skep/v1"
)

func input(change func(*skepv1.TaskSpec, *Input)) Input {
	svc := &skepv1.ServiceSpec{Name: "web", Labels: map[string]string{"a": "b"}, Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{}}}
	rec := &skepv1.TaskRecord{Id: "0123456789abcdefghijklmno", ServiceId: "svc1", Slot: 3}
	in := Input{
		Names: NamesOf("node1", "host1", "amd64", rec, svc), Service: svc, Record: rec, Netns: "/run/netns/x", Cgroup: "/skep/n/t",
		Image:  v1.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, Env: []string{"A=image", "B=image"}, WorkingDir: "/srv", User: "app"},
		Passwd: []byte("root:x:0:0::/root:/bin/sh\napp:x:100:200::/:/bin/sh\n"), Group: []byte("app:x:200:\nmore:x:300:app\n"),
		Hosts: "/t/hosts", Resolv: "/t/resolv", Hostname: "/t/hostname", Init: "/bin/skep-init",
		Limits: Host{Swap: true, HardLimit: map[string]uint64{"nofile": 1000}},
	}
	if change != nil {
		change(svc.Task, &in)
	}
	return in
}

func build(t *testing.T, change func(*skepv1.TaskSpec, *Input)) *specs.Spec {
	t.Helper()
	s, err := Build(input(change))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// /sys and the cgroups are a container's own and read-only whatever its network is, with cgroup v1 and v2.
func TestSysIsReadOnly(t *testing.T) {
	for _, netns := range []string{"/run/netns/x", ""} {
		for _, v2 := range []bool{false, true} {
			s := build(t, func(_ *skepv1.TaskSpec, in *Input) { in.Netns, in.Limits.CgroupV2 = netns, v2 })
			types := map[string]string{}
			for _, m := range s.Mounts {
				if strings.HasPrefix(m.Destination, "/sys") {
					types[m.Destination] = m.Type
					if !slices.Contains(m.Options, "ro") {
						t.Errorf("network %q, v2 %v: %s is writable", netns, v2, m.Destination)
					}
				}
			}
			if types["/sys"] != "sysfs" || types["/sys/fs/cgroup"] != "cgroup" || len(types) != 2 {
				t.Errorf("network %q, v2 %v: %v", netns, v2, types)
			}
			if slices.Contains(s.Linux.ReadonlyPaths, "/sys/fs/cgroup") == v2 {
				t.Errorf("network %q, v2 %v: read-only paths %v", netns, v2, s.Linux.ReadonlyPaths)
			}
		}
	}
}

func TestHome(t *testing.T) {
	for home, change := range map[string]func(*skepv1.TaskSpec, *Input){
		"HOME=/":     nil,
		"HOME=/root": func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.User = "root" },
		"HOME=/mine": func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.Env = []string{"HOME=/mine"} },
	} {
		s := build(t, change)
		p := *s.Process
		if !slices.Contains(p.Env, home) {
			t.Errorf("want %s, got %v", home, p.Env)
		}
		SetHome(s, &p, "/other") // an exec of another user
		if want := map[bool]string{true: "HOME=/mine", false: "HOME=/other"}[home == "HOME=/mine"]; !slices.Contains(p.Env, want) {
			t.Errorf("%s: an exec of another user has %v", home, p.Env)
		}
	}
}

func TestDefaults(t *testing.T) {
	s := build(t, nil)
	if got := strings.Join(s.Process.Args, " "); got != "/entry cmd" || s.Process.Cwd != "/srv" {
		t.Errorf("args %q in %s", got, s.Process.Cwd)
	}
	if u := s.Process.User; u.UID != 100 || u.GID != 200 || !slices.Contains(u.AdditionalGids, 300) {
		t.Errorf("user %+v", u)
	}
	if s.Linux.Seccomp == nil || s.Process.NoNewPrivileges || s.Process.Rlimits != nil {
		t.Error("want the seccomp profile, setuid programs, inherited limits")
	}
	if c := s.Process.Capabilities; len(c.Bounding) != len(defaultCaps) || c.Effective != nil {
		t.Errorf("a user who is not root: %+v", c)
	}
	if s.Hostname != "0123456789ab" {
		t.Errorf("hostname %q", s.Hostname)
	}
	if len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 {
		t.Error("/proc is open")
	}
	for _, m := range s.Mounts {
		if m.Destination == "/run" {
			t.Error("a tmpfs hides the image's /run")
		}
	}
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace && ns.Path != "/run/netns/x" {
			t.Errorf("network namespace %q", ns.Path)
		}
	}
}

func TestHostNetwork(t *testing.T) {
	s := build(t, func(_ *skepv1.TaskSpec, in *Input) { in.Netns = "" })
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			t.Error("it has a network namespace of its own")
		}
	}
	if len(s.Linux.Sysctl) != 0 {
		t.Errorf("sysctls of the host's own network: %v", s.Linux.Sysctl)
	}
}

func TestArgs(t *testing.T) {
	img := v1.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	for want, c := range map[string]*skepv1.ContainerSpec{
		"e c": {}, "e x": {Args: []string{"x"}}, "o": {Command: []string{"o"}}, "o x": {Command: []string{"o"}, Args: []string{"x"}},
	} {
		if got, err := Args(c, img); err != nil || strings.Join(got, " ") != want {
			t.Errorf("want %q, got %q %v", want, got, err)
		}
	}
	if _, err := Args(&skepv1.ContainerSpec{}, v1.ImageConfig{}); err == nil {
		t.Error("no command at all is fine?")
	}
}

func TestEnvironment(t *testing.T) {
	s := build(t, func(ts *skepv1.TaskSpec, in *Input) {
		ts.Container.Env = []string{"A=spec", "B", "T={{.Task.Name}}", "L={{index .Service.Labels \"a\"}}", "P={{.Node.Platform.OS}}", "J={{join \",\" .Node.ID .Task.Slot}}"}
		in.Record.Assigned = []*skepv1.GenericResource{{Kind: "gpu", Named: []string{"u1", "u2"}}, {Kind: "ssd", Value: 2}}
	})
	for _, want := range []string{"A=spec", "T=web.3.0123456789abcdefghijklmno", "L=b", "P=linux", "J=node1,3", "DOCKER_RESOURCE_GPU=u1,u2", "DOCKER_RESOURCE_SSD=2", "HOSTNAME=0123456789ab"} {
		if !slices.Contains(s.Process.Env, want) {
			t.Errorf("%s is missing in %v", want, s.Process.Env)
		}
	}
	if slices.ContainsFunc(s.Process.Env, func(e string) bool { return strings.HasPrefix(e, "B") }) {
		t.Error("a bare name did not remove the variable")
	}
}

func TestLimits(t *testing.T) {
	swap, swappy := int64(1<<20), int64(40)
	s := build(t, func(ts *skepv1.TaskSpec, _ *Input) {
		ts.Resources = &skepv1.ResourceRequirements{Limits: &skepv1.Resources{NanoCpus: 5e8, MemoryBytes: 64 << 20, Pids: 9}, SwapBytes: &swap, MemorySwappiness: &swappy,
			Reservations: &skepv1.Resources{MemoryBytes: 32 << 20}}
	})
	r := s.Linux.Resources
	if *r.CPU.Quota != 50_000 || *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 65<<20 || *r.Pids.Limit != 9 || *r.Memory.Swappiness != 40 || *r.Memory.Reservation != 32<<20 {
		t.Errorf("%+v %+v %+v", *r.CPU, *r.Memory, *r.Pids)
	}
	s = build(t, func(ts *skepv1.TaskSpec, _ *Input) {
		ts.Resources = &skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 64 << 20}}
	})
	if *s.Linux.Resources.Memory.Swap != 64<<20 {
		t.Error("swap comes on top of the memory limit unasked")
	}
}

func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(*skepv1.TaskSpec, *Input){
		"is above what this node's agent may give, 1000": func(ts *skepv1.TaskSpec, _ *Input) {
			ts.Container.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: 1, Hard: 2000}}
		},
		"above what this node's kernel gives, 1048576; lower it or raise fs.nr_open": func(ts *skepv1.TaskSpec, in *Input) {
			in.Limits.SysResource, in.Limits.MaxFiles = true, 1048576
			ts.Container.Ulimits = []*skepv1.Ulimit{{Name: "nofile", Soft: 1, Hard: 2000000000}}
		},
		"invalid sysctl vm.max_map_count: it is the whole node's": func(ts *skepv1.TaskSpec, _ *Input) {
			ts.Container.Sysctls = map[string]string{"vm.max_map_count": "1"}
		},
		`invalid ulimit type: files`: func(ts *skepv1.TaskSpec, _ *Input) {
			ts.Container.Ulimits = []*skepv1.Ulimit{{Name: "files"}}
		},
		`invalid capability "CAP_FLY"`: func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.CapabilityAdd = []string{"FLY"} },
		"cannot be given": func(ts *skepv1.TaskSpec, in *Input) {
			in.Limits.Caps, ts.Container.CapabilityAdd = defaultCaps, []string{"SYS_ADMIN"}
		},
		"oom score adjustment -5": func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.OomScoreAdj = -5 },
		"no skep-init":            func(ts *skepv1.TaskSpec, in *Input) { yes := true; ts.Container.Init, in.Init = &yes, "" },
		"the smallest a container can": func(ts *skepv1.TaskSpec, _ *Input) {
			ts.Resources = &skepv1.ResourceRequirements{Limits: &skepv1.Resources{MemoryBytes: 1 << 20}}
		},
		"not an absolute path":      func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.Dir = "x" },
		`template "{{.Nope}}"`:      func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.Hostname = "{{.Nope}}" },
		"unable to find user ghost": func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.User = "ghost" },
		"longer than the kernel's":  func(ts *skepv1.TaskSpec, _ *Input) { ts.Container.Hostname = strings.Repeat("x", 64) },
		`unknown seccomp mode "strange"`: func(ts *skepv1.TaskSpec, _ *Input) {
			ts.Container.Privileges = &skepv1.Privileges{SeccompMode: "strange"}
		},
	} {
		if _, err := Build(input(change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct{ add, drop, want, not string }{
		{"", "", "CAP_CHOWN", "CAP_SYS_ADMIN"},
		{"NET_ADMIN", "CAP_CHOWN", "CAP_NET_ADMIN", "CAP_CHOWN"},
		{"ALL", "NET_RAW", "CAP_SYS_ADMIN", "CAP_NET_RAW"},
		{"CHOWN", "ALL", "CAP_CHOWN", "CAP_KILL"},
	} {
		got, err := Capabilities(strings.Fields(c.add), strings.Fields(c.drop), nil)
		if err != nil || !slices.Contains(got, c.want) || slices.Contains(got, c.not) {
			t.Errorf("+%s -%s: %v %v", c.add, c.drop, got, err)
		}
	}
}

func TestMountOrder(t *testing.T) {
	s := build(t, func(_ *skepv1.TaskSpec, in *Input) {
		in.Mounts = []specs.Mount{
			{Destination: "/a/b", Type: "bind", Options: []string{"rshared"}}, {Destination: "/a", Type: "bind"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "mine"}, {Destination: "/etc/hosts", Type: "bind", Source: "mine"},
		}
	})
	at := map[string]int{}
	for i, m := range s.Mounts {
		if _, twice := at[m.Destination]; twice {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		at[m.Destination] = i
		if (m.Destination == "/dev/shm" || m.Destination == "/etc/hosts") && m.Source != "mine" {
			t.Errorf("the user's %s lost", m.Destination)
		}
	}
	if at["/a"] > at["/a/b"] || s.Linux.RootfsPropagation != "rshared" {
		t.Errorf("order %v, propagation %q", at, s.Linux.RootfsPropagation)
	}
}

func TestFiles(t *testing.T) {
	h := HostsFile("web1", []netip.Prefix{netip.MustParsePrefix("10.1.0.5/16")}, []string{"10.9.9.9 db db.lan"})
	if !strings.Contains(h, "10.1.0.5\tweb1\n") || !strings.Contains(h, "10.9.9.9\tdb db.lan\n") {
		t.Errorf("%s", h)
	}
	host := []byte("nameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch corp\noptions edns0\n")
	if got := ResolvConf(nil, nil, host); got != "nameserver 10.0.0.2\nsearch corp\noptions edns0\n" {
		t.Errorf("%q", got)
	}
	for given, want := range map[string]string{
		"timeout:2": "ndots:0 timeout:2", "timeout:2 rotate": "ndots:0 timeout:2 rotate", "ndots:3": "ndots:3", "timeout:2 ndots:1": "timeout:2 ndots:1", "ndots": "ndots",
	} {
		for _, dns := range []string{"127.0.0.11", "fd00::11"} {
			got := ResolvConf([]netip.Addr{netip.MustParseAddr(dns)}, &skepv1.DNSConfig{Options: strings.Fields(given)}, host)
			if !strings.HasSuffix(got, "\noptions "+want+"\n") {
				t.Errorf("%s with %s: %s", given, dns, got)
			}
		}
	}
	if got := ResolvConf(nil, &skepv1.DNSConfig{Options: []string{"timeout:2"}}, host); !strings.HasSuffix(got, "\noptions timeout:2\n") {
		t.Errorf("on the host's network: %s", got)
	}
	if got := ResolvConf([]netip.Addr{netip.MustParseAddr("127.0.0.11")}, &skepv1.DNSConfig{Search: []string{"."}}, host); got != "nameserver 127.0.0.11\noptions ndots:0\n" {
		t.Errorf("%q", got)
	}
}

func TestCustomSeccomp(t *testing.T) {
	profile := `{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
	 "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
	 {"name":"clone","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}`
	s := build(t, func(ts *skepv1.TaskSpec, _ *Input) {
		ts.Container.Privileges = &skepv1.Privileges{SeccompMode: "custom", SeccompProfile: []byte(profile)}
	})
	var names []string
	for _, c := range s.Linux.Seccomp.Syscalls {
		names = append(names, c.Names...)
	}
	if strings.Join(names, " ") != "read clone" {
		t.Errorf("system calls %v", names)
	}
}

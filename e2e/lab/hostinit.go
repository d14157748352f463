package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A host's init is this very program under another name, so that the lab works from skep-lab and from a test binary alike.
// Stage one joins the host's cgroups and makes them its root; stage two, a fresh image of the same process so that all of its
// threads are inside, makes the mounts, says it is ready on descriptor 3 and reaps orphans until it is killed.
const (
	initArg0   = "skep-lab-host"
	initStage1 = "SKEP_LAB_HOST"
	initStage2 = "SKEP_LAB_HOST_2"

	readyFD    = 3
	lifelineFD = 4
)

// hostSpec is what an init needs to know.
type hostSpec struct {
	Name      string      `json:"name"`
	Procs     []string    `json:"procs"` // cgroup.procs files to join
	Trees     []hierarchy `json:"trees"`
	Disk      string      `json:"disk"` // holds the host's files: lib, srv, etc
	SmallDisk int64       `json:"small_disk"`
	OwnDisk   bool        `json:"own_disk"`
	Lifeline  bool        `json:"lifeline"`
}

func init() {
	if len(os.Args) == 0 || os.Args[0] != initArg0 {
		return
	}
	runtime.LockOSThread()
	err := hostInit()
	fmt.Fprintln(os.NewFile(readyFD, "ready"), err)
	os.Exit(1)
}

func hostInit() error {
	spec := os.Getenv(initStage1)
	if spec != "" {
		return initEnter(spec)
	}
	var s hostSpec
	if err := json.Unmarshal([]byte(os.Getenv(initStage2)), &s); err != nil {
		return fmt.Errorf("read the host's description: %w", err)
	}
	if err := initMounts(s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if s.Lifeline {
		go func() {
			line := os.NewFile(lifelineFD, "lifeline")
			_, _ = line.Read(make([]byte, 1)) // returns when the other end is closed
			os.Exit(0)                        // power-off: we are process 1 of the namespace
		}()
	}
	ready := os.NewFile(readyFD, "ready")
	fmt.Fprintln(ready, "ready")
	ready.Close()
	reap()
	return nil
}

// initEnter is stage one.
func initEnter(raw string) error {
	var s hostSpec
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return fmt.Errorf("read the host's description: %w", err)
	}
	if err := join(s.Procs); err != nil {
		return err
	}
	own := ""
	if pureV2(s.Trees) { // the namespace's root is to be the group above the leaf
		own = filepath.Dir(filepath.Dir(s.Procs[0]))
		if err := join([]string{filepath.Join(own, "cgroup.procs")}); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if own != "" {
		if err := join(s.Procs); err != nil {
			return err
		}
		delegate(own)
	}
	return syscall.Exec("/proc/self/exe", []string{initArg0}, []string{initStage2 + "=" + raw, "PATH=" + os.Getenv("PATH"), "GOMAXPROCS=1"})
}

func join(procs []string) error {
	for _, p := range procs {
		if err := os.WriteFile(p, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// initMounts gives the host its own /proc, /sys, cgroup trees, /run, /var/lib/skep, /srv and names in /etc.
// Everything else is the machine's, read and written as it is.
func initMounts(s hostSpec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// What is about to be covered goes first: a covered mount of another host's network namespace would keep it alive
	// after its power-off, and runc takes the first cgroup mount it finds.
	if err := unmountBelow("/run", "/sys", "/proc"); err != nil {
		return err
	}
	resolv, _ := os.Readlink("/etc/resolv.conf") // may point into the /run that is about to be covered
	for _, m := range []struct{ typ, dir, data string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"},
	} {
		if err := mount(m.typ, m.dir, m.data); err != nil {
			return err
		}
	}
	if err := mountCgroups(s.Trees); err != nil {
		return err
	}
	for _, d := range []string{"/run/lock", "/run/netns"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	lib := filepath.Join(s.Disk, "lib")
	if s.OwnDisk {
		var err error
		if lib, err = mountOwnDisk(ownDisk(s.Disk), lib); err != nil {
			return fmt.Errorf("mount the host's own disk: %w", err)
		}
	}
	if err := ownVarLib(lib); err != nil {
		return err
	}
	if s.SmallDisk > 0 {
		dir := "/var/lib/skep/containerd"
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := mount("tmpfs", dir, fmt.Sprintf("size=%d", s.SmallDisk)); err != nil {
			return err
		}
	}
	if err := bind(filepath.Join(s.Disk, "srv"), "/srv"); err != nil {
		return err
	}
	for _, f := range []string{"hostname", "hosts", "resolv.conf"} {
		target := "/etc/" + f
		if f == "resolv.conf" && resolv != "" {
			if target = resolv; !filepath.IsAbs(target) {
				target = filepath.Join("/etc", resolv)
			}
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			if file, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
				file.Close()
			}
		}
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			continue // a machine without the file has nothing to cover
		}
		if err := bind(filepath.Join(s.Disk, "etc", f), target); err != nil {
			return err
		}
	}
	return nil
}

// unmountBelow detaches every mount at or below the folders, newest first.
func unmountBelow(dirs ...string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) < 5 {
			continue
		}
		for _, d := range dirs {
			if f[4] != d && !strings.HasPrefix(f[4], d+"/") {
				continue
			}
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it may just have gone
				return fmt.Errorf("unmount %s: %w", f[4], err)
			}
		}
	}
	return nil
}

// ownVarLib puts the host's disk at /var/lib/skep without making a folder on the machine: /var/lib becomes a
// small tmpfs of links to what was there.
func ownVarLib(disk string) error {
	const kept = "/run/.lab/var-lib"
	if err := os.MkdirAll(kept, 0o755); err != nil {
		return err
	}
	if err := bind("/var/lib", kept); err != nil {
		return err
	}
	entries, err := os.ReadDir(kept)
	if err != nil {
		return err
	}
	if err := mount("tmpfs", "/var/lib", "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "skep" {
			continue
		}
		if err := os.Symlink(filepath.Join(kept, e.Name()), filepath.Join("/var/lib", e.Name())); err != nil {
			return err
		}
	}
	if err := os.Mkdir("/var/lib/skep", 0o700); err != nil {
		return err
	}
	return bind(disk, "/var/lib/skep")
}

func mountCgroups(trees []hierarchy) error {
	if pureV2(trees) {
		return mount("cgroup2", cgroupRoot, "")
	}
	if err := mount("tmpfs", cgroupRoot, "mode=755"); err != nil {
		return err
	}
	for _, t := range trees {
		if err := os.MkdirAll(t.Dir, 0o755); err != nil {
			return err
		}
		if err := mount(t.FSType, t.Dir, t.Data); err != nil {
			return err
		}
		if parts := strings.Split(t.Data, ","); len(parts) > 1 {
			for _, p := range parts { // cpu and cpuacct, one tree under two names
				_ = os.Symlink(filepath.Base(t.Dir), filepath.Join(cgroupRoot, p))
			}
		}
	}
	return nil
}

func mount(typ, dir, data string) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV)
	if typ == "tmpfs" {
		flags = 0
	}
	if err := unix.Mount(typ, dir, typ, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", typ, data, dir, err)
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", from, to, err)
	}
	return nil
}

// reap waits for the orphans of the host, as every process 1 must.
func reap() {
	ended := make(chan os.Signal, 16)
	signal.Notify(ended, unix.SIGCHLD)
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	for range ended {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				break
			}
		}
	}
}

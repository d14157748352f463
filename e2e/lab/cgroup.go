package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchy is one mounted cgroup tree of the machine.
type hierarchy struct {
	Dir    string `json:"dir"`    // where it is mounted
	FSType string `json:"fstype"` // cgroup or cgroup2
	Data   string `json:"data"`   // the mount option that names it: "cpu", "cpu,cpuacct", "name=systemd"
}

// hierarchies reads what the machine has: one unified tree, version 1 controllers, or both.
func hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []hierarchy
	seen := map[string]bool{}
	for _, line := range strings.Split(string(b), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		f, r := strings.Fields(left), strings.Fields(right)
		if len(f) < 5 || len(r) < 3 || !strings.HasPrefix(r[0], "cgroup") || !strings.HasPrefix(f[4], cgroupRoot) || seen[f[4]] {
			continue
		}
		seen[f[4]] = true
		var data []string
		if r[0] == "cgroup" {
			for _, o := range strings.Split(r[2], ",") {
				if o != "rw" && o != "ro" && o != "xattr" && o != "clone_children" && !strings.HasPrefix(o, "release_agent=") {
					data = append(data, o)
				}
			}
		}
		out = append(out, hierarchy{Dir: f[4], FSType: r[0], Data: strings.Join(data, ",")})
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroup file system is mounted below " + cgroupRoot)
	}
	return out, nil
}

// pureV2 says whether everything is in the unified tree.
func pureV2(hs []hierarchy) bool { return len(hs) == 1 && hs[0].Dir == cgroupRoot }

// leaf is the group, below a host's own, that its init and what is run on it live in: in the unified
// tree a group with controllers for its children may hold no process itself.
const leaf = "lab"

// makeCgroups makes the host's group in every tree and returns the files a process writes itself to to be on the host.
func makeCgroups(lab, host string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var procs []string
	for _, h := range hs {
		path := h.Dir
		for _, part := range []string{"skep-lab", lab, host} {
			delegate(path)
			path = filepath.Join(path, part)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("make the cgroup of %s: %w", host, err)
			}
			if h.Data == "cpuset" || strings.Contains(h.Data, "cpuset") {
				inheritCpuset(path)
			}
		}
		if pureV2(hs) { // its init delegates the controllers, once it is in the leaf
			path = filepath.Join(path, leaf)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("make the cgroup of %s: %w", host, err)
			}
		}
		procs = append(procs, filepath.Join(path, "cgroup.procs"))
	}
	return procs, nil
}

// delegate hands a unified group's controllers to its children, one by one: some may be missing or refused.
// In a version 1 tree the files do not exist and nothing happens.
func delegate(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// inheritCpuset fills what a version 1 cpuset needs before it takes a process.
func inheritCpuset(dir string) {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f)); err == nil {
			_ = os.WriteFile(filepath.Join(dir, f), b, 0o644)
		}
	}
}

// cgroupPIDs lists the processes of a lab's groups, or of one host's when host is given.
func cgroupPIDs(lab, host string) ([]int, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	var out []int
	for _, h := range hs {
		root := filepath.Join(h.Dir, "skep-lab", lab, host)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // a group that vanished meanwhile has no process
			}
			b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				return nil
			}
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					out = append(out, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// killCgroups ends every process of the lab, or of one host, and waits until they are gone.
func killCgroups(lab, host string) error {
	for end := time.Now().Add(20 * time.Second); ; {
		pids, err := cgroupPIDs(lab, host)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v of lab %s %s do not die", pids, lab, host)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // already gone is what we want
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// removeCgroups removes the (empty) groups, children first.
func removeCgroups(lab, host string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	var failed error
	for _, h := range hs {
		root := filepath.Join(h.Dir, "skep-lab", lab, host)
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := rmdirSoon(dirs[i]); err != nil {
				failed = errors.Join(failed, err)
			}
		}
		_ = unix.Rmdir(filepath.Join(h.Dir, "skep-lab")) // the last lab out
	}
	return failed
}

// rmdirSoon removes a group; the kernel may need a moment to notice that its last process has gone.
func rmdirSoon(dir string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// remove ends and deletes everything that carries the lab's name, whether or not it is written down.
func remove(lab string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := killCgroups(lab, "")
	for _, ns := range labNetns(lab) {
		err = errors.Join(err, ip(ctx, "", "netns del "+ns))
	}
	err = errors.Join(err, removeCgroups(lab, ""), os.RemoveAll(filepath.Join(diskRoot, lab)), os.RemoveAll(filepath.Join(runRoot, lab)))
	_, _ = os.Remove(diskRoot), os.Remove(runRoot) // when this was the last lab
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", lab, err)
	}
	return nil
}

// labNetns lists the lab's network namespaces. A lab "a" must not take those of a lab "a-b" for its own: host names hold no dash.
func labNetns(lab string) []string {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil // never made
	}
	var out []string
	for _, e := range entries {
		if host, ok := strings.CutPrefix(e.Name(), netnsName(lab, "")); ok && !strings.Contains(host, "-") {
			out = append(out, e.Name())
		}
	}
	return out
}

// Leftovers lists what a lab of this name has on the machine: processes, namespaces, mounts, cgroups, folders. After Down it is empty.
func Leftovers(lab string) ([]string, error) {
	var left []string
	pids, err := cgroupPIDs(lab, "")
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		left = append(left, fmt.Sprintf("process %d %s", pid, strings.TrimSpace(string(comm))))
	}
	for _, ns := range labNetns(lab) {
		left = append(left, "network namespace "+ns)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 && (strings.Contains(line, filepath.Join("/skep-lab", lab)+"/") || ofNetns(f[4], lab)) {
			left = append(left, "mount "+f[4])
		}
	}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	dirs := []string{filepath.Join(diskRoot, lab), filepath.Join(runRoot, lab)}
	for _, h := range hs {
		dirs = append(dirs, filepath.Join(h.Dir, "skep-lab", lab))
	}
	for _, d := range dirs {
		if _, err := os.Lstat(d); err == nil {
			left = append(left, "folder "+d)
		}
	}
	return left, nil
}

func ofNetns(mountpoint, lab string) bool {
	host, ok := strings.CutPrefix(filepath.Base(mountpoint), netnsName(lab, ""))
	return ok && filepath.Base(filepath.Dir(mountpoint)) == "netns" && !strings.Contains(host, "-")
}

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// boot switches a host on: network, cgroups, disk, and its init in namespaces of its own.
func (l *Lab) boot(ctx context.Context, h *Host) error {
	if err := l.writeDisk(h); err != nil {
		return fmt.Errorf("prepare the disk of %s: %w", h.Name, err)
	}
	if h.OwnDisk > 0 {
		if err := makeOwnDisk(ctx, ownDisk(l.diskDir(h)), h.OwnDisk); err != nil {
			return fmt.Errorf("prepare the own disk of %s: %w", h.Name, err)
		}
	}
	if err := l.plug(ctx, h); err != nil {
		return err
	}
	procs, err := makeCgroups(l.Name, h.Name)
	if err != nil {
		return err
	}
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	spec, err := json.Marshal(hostSpec{Name: h.Name, Procs: procs, Trees: trees, Disk: l.diskDir(h), SmallDisk: h.SmallDisk, OwnDisk: h.OwnDisk > 0, Lifeline: l.reader != nil})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.runDir(h), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(l.runDir(h), "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	pid, err := startInit(netnsName(l.Name, h.Name), string(spec), log, l.reader)
	if err != nil {
		return fmt.Errorf("switch on %s: %w (see %s)", h.Name, err, log.Name())
	}
	l.mu.Lock()
	h.PID, h.Cut, h.Frozen = pid, false, false
	h.Started, err = startTime(pid)
	l.mu.Unlock()
	if err == nil && l.VolumePlugin != "" && (h.Role == Manager || h.Role == Worker) && slices.Contains(l.Hosts, h) {
		err = l.StartVolumePlugin(ctx, h.Name)
	}
	return err
}

// inits are the hosts that this process started and that have not ended: the process id, and a channel that is closed then.
var inits sync.Map

// awaitEnd waits, for a limited time, until a host that this process started is gone. A killed one ends when the kernel
// has taken its namespaces apart.
func awaitEnd(pid int) error {
	done, ok := inits.Load(pid)
	if !ok {
		return nil
	}
	select {
	case <-done.(chan struct{}):
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("host process %d does not end", pid)
	}
}

// startInit runs this program as the init of a host in the given network namespace and waits until it is ready.
func startInit(ns, spec string, log, lifeline *os.File) (int, error) {
	ready, said, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{initArg0}, Dir: "/", Stdout: log, Stderr: log,
		Env:        []string{initStage1 + "=" + spec, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1"},
		ExtraFiles: []*os.File{said},
		SysProcAttr: &unix.SysProcAttr{Setsid: true,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC},
	}
	if lifeline != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, lifeline)
	}
	began := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is in another network and ends with this goroutine
		fd, err := netns.GetFromName(ns)
		if err != nil {
			began <- fmt.Errorf("open network namespace %s: %w", ns, err)
			return
		}
		defer fd.Close()
		if err := netns.Set(fd); err != nil {
			began <- fmt.Errorf("enter network namespace %s: %w", ns, err)
			return
		}
		began <- cmd.Start()
	}()
	err = <-began
	said.Close()
	if err != nil {
		return 0, err
	}
	done := make(chan struct{})
	inits.Store(cmd.Process.Pid, done)
	go func() {
		_ = cmd.Wait() // so that it is no zombie when it is killed; how it ended is known to who killed it
		inits.Delete(cmd.Process.Pid)
		close(done)
	}()
	if err := ready.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, err
	}
	word := make([]byte, 4096)
	n, err := ready.Read(word)
	if line := strings.TrimSpace(string(word[:n])); line != "ready" {
		return 0, fmt.Errorf("its init says %q (%v)", line, err)
	}
	return cmd.Process.Pid, nil
}

// writeDisk makes the folders and files of a host's disk that are missing.
func (l *Lab) writeDisk(h *Host) error {
	disk := l.diskDir(h)
	for dir, mode := range map[string]os.FileMode{"lib": 0o700, "srv/root": 0o755, "etc": 0o755} {
		if err := os.MkdirAll(filepath.Join(disk, dir), mode); err != nil {
			return err
		}
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n")
	for _, o := range l.Hosts {
		fmt.Fprintf(&hosts, "%s\t%s\n", o.IP, o.Name)
	}
	for name, content := range map[string]string{
		"etc/hostname":    h.Name + "\n",
		"etc/hosts":       hosts.String(),
		"etc/resolv.conf": "nameserver " + gatewayIP + "\noptions timeout:1 attempts:1\n", // refuses at once: nobody listens there
	} {
		if err := os.WriteFile(filepath.Join(disk, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if h.Role == Manager || h.Role == Worker {
		return os.WriteFile(filepath.Join(disk, "lib", "registries.toml"), []byte(registriesTOML), 0o600)
	}
	return nil
}

// Kill is a power-off: every process of the host ends at once, nothing is stopped gracefully, the disk stays.
func (l *Lab) Kill(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if !h.Running() {
		return fmt.Errorf("host %s is off already", host)
	}
	if err := errors.Join(l.ResumeDisk(host), l.Repair(ctx, host)); err != nil {
		return err
	}
	// The cable first, as the peers of a dead machine see it: no last word may leave.
	if err := ip(ctx, fabricName(l.Name), "link del "+portName(h)); err != nil {
		return fmt.Errorf("switch off %s: %w", host, err)
	}
	if err := unix.Kill(h.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("switch off %s: %w", host, err)
	}
	if err := errors.Join(killCgroups(l.Name, h.Name), l.unplug(ctx, h), removeCgroups(l.Name, h.Name)); err != nil {
		return fmt.Errorf("switch off %s: %w", host, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.PID, h.Cut, h.Frozen = 0, false, false
	return l.save()
}

// Start switches a host on again, and its daemon if it had one.
func (l *Lab) Start(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if h.Running() {
		return fmt.Errorf("host %s is on already", host)
	}
	// What a host that died by itself (its lifeline, the out-of-memory killer) left.
	if err := errors.Join(killCgroups(l.Name, h.Name), l.unplug(ctx, h)); err != nil {
		return err
	}
	if err := l.boot(ctx, h); err != nil {
		return err
	}
	if err := l.saveLocked(); err != nil {
		return err
	}
	if h.Role == Registry {
		store, err := l.seedRegistry(ctx)
		if err != nil {
			return err
		}
		return l.startRegistry(ctx, store)
	}
	if !h.Joined {
		return nil
	}
	return l.StartDaemon(ctx, host)
}

func (l *Lab) saveLocked() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.save()
}

// Running says whether the host is on.
func (h *Host) Running() bool {
	if h.PID == 0 {
		return false
	}
	at, err := startTime(h.PID)
	return err == nil && at == h.Started // a number that was given to another process since is not ours
}

// startTime is when a process began, in the kernel's ticks: with the number it names a process for good.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, fmt.Errorf("unexpected /proc/%d/stat", pid)
	}
	if f[0] == "Z" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

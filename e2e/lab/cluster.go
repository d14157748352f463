package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// controlPort is where managers take joins.
const controlPort = "2377"

// makeCluster runs `skep init` on m1 and joins the others to it, as a user would.
func (l *Lab) makeCluster(ctx context.Context, o Options) error {
	m1, err := l.Host("m1")
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(l.Skep, "skep")); err != nil {
		return fmt.Errorf("no skep to run: %w; run `make build`", err)
	}
	if _, err := l.must(ctx, "m1", slices.Concat([]string{"skep", "init", "--advertise-addr", m1.IP}, l.Flags, o.InitFlags)...); err != nil {
		return err
	}
	m1.Joined = true
	if l.Separate {
		if err := l.startServices(ctx, m1); err != nil {
			return err
		}
	}
	tokens := map[string]string{}
	for _, role := range []string{Manager, Worker} {
		t, err := l.must(ctx, "m1", "skep", "join-token", "-q", role)
		if err != nil {
			return err
		}
		tokens[role] = strings.TrimSpace(t)
	}
	// Managers one after the other, as the quorum grows; then the workers, a few at a time.
	var workers []*Host
	for _, h := range l.Hosts {
		switch {
		case h.Role == Manager && h != m1:
			if err := l.Join(ctx, h, tokens[Manager]); err != nil {
				return fmt.Errorf("join manager %s: %w", h.Name, err)
			}
		case h.Role == Worker:
			workers = append(workers, h)
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	errs := make([]error, len(workers))
	for i, h := range workers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = l.Join(ctx, h, tokens[Worker])
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Join makes a booted host a member of m1's cluster.
func (l *Lab) Join(ctx context.Context, h *Host, token string) error {
	m1, err := l.Host("m1")
	if err != nil {
		return err
	}
	if _, err := l.must(ctx, h.Name, slices.Concat([]string{"skep", "join", "--token", token, "--advertise-addr", h.IP}, l.Flags, []string{m1.IP + ":" + controlPort})...); err != nil {
		return err
	}
	l.mu.Lock()
	h.Joined = true
	l.mu.Unlock()
	if l.Separate {
		return l.startServices(ctx, h)
	}
	return nil
}

// Add boots one more host, not yet in the cluster: w7 after w6.
func (l *Lab) Add(ctx context.Context) (*Host, error) {
	n := 1
	for _, h := range l.Hosts {
		if h.Role == Worker {
			n++
		}
	}
	h := &Host{Name: fmt.Sprintf("w%d", n), Role: Worker, IP: fmt.Sprintf("10.90.2.%d", n)}
	if err := l.boot(ctx, h); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.Hosts = append(l.Hosts, h)
	err := l.save()
	l.mu.Unlock()
	if err == nil && l.VolumePlugin != "" {
		err = l.StartVolumePlugin(ctx, h.Name)
	}
	return h, err
}

// StartDaemon does what the init system does on a host that has one: it starts the node again after a boot or a crash.
func (l *Lab) StartDaemon(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if l.Separate {
		for _, name := range Programs(h.Role) {
			if err := l.StartProgram(ctx, host, name); err != nil {
				return err
			}
		}
		return nil
	}
	return l.detach(ctx, host, "skep node run", "skep")
}

// Programs are the services of a host with a process each. They start in any order: this is the least convenient one.
func Programs(role string) []string {
	if role == Manager {
		return []string{"skep-engine", "skep-agent", "skep-mesh", "skep-mesh-controller", "skep-scheduler", "skep-health", "skep-vault", "skep-state", "skep-bus"}
	}
	return []string{"skep-engine", "skep-agent", "skep-mesh"}
}

// StartProgram does what a supervisor does: it starts one of the services, or one more instance of it.
func (l *Lab) StartProgram(ctx context.Context, host, name string, args ...string) error {
	return l.detach(ctx, host, strings.Join(append([]string{name}, args...), " "), name)
}

// detach starts a program of a host in the background, its output in <log>.log on the host's disk. It becomes a child of the host's
// first process: one of nsenter's would stay a zombie once the host was frozen, since nsenter stops with its child and nobody wakes it.
func (l *Lab) detach(ctx context.Context, host, command, log string) error {
	cmd, err := l.Command(context.WithoutCancel(ctx), host, "/bin/sh", "-c",
		fmt.Sprintf("setsid %s >>/var/lib/skep/%s.log 2>&1 </dev/null &", command, log))
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s on %s: %w", command, host, err)
	}
	return nil
}

// startServices starts a host's services as processes of their own and waits until they serve.
func (l *Lab) startServices(ctx context.Context, h *Host) error {
	if err := l.StartDaemon(ctx, h.Name); err != nil {
		return err
	}
	script := `curl -sS --max-time 5 --unix-socket /run/skep/node.sock http://node/ready | grep -q '"state":"ready"'`
	if h.Role == Manager {
		script += ` && test -n "$(skep node ls -q)" && skep join-token -q worker`
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		r, err := l.Run(ctx, h.Name, "sh", "-c", script)
		if err == nil && r.Code == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the services of %s do not serve: %s%s", h.Name, r.Stdout, r.Stderr)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Freeze stops a host's daemon where it stands (SIGSTOP), with all its connections open: it hangs, and does not die. Containers
// and containerd go on.
func (l *Lab) Freeze(ctx context.Context, host string) error { return l.stall(ctx, host, "STOP", true) }

// Thaw lets a frozen daemon go on, as if no time had passed.
func (l *Lab) Thaw(ctx context.Context, host string) error { return l.stall(ctx, host, "CONT", false) }

func (l *Lab) stall(ctx context.Context, host, signal string, frozen bool) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	// Who runs here is in the locks of the node and of its parts; a lock whose process is gone names nobody.
	script := fmt.Sprintf(`n=0; for f in /var/lib/skep/lock/node /var/lib/skep/lock/skep-*; do
  p=$(cat "$f" 2>/dev/null); [ -n "$p" ] && kill -%s "$p" 2>/dev/null && n=$((n+1)); done; [ $n -gt 0 ]`, signal)
	if _, err := l.must(ctx, host, "sh", "-c", script); err != nil {
		return fmt.Errorf("send SIG%s to the daemon of %s: does it run? %w", signal, host, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.Frozen = frozen
	return l.save()
}

// SetRole has later commands go by a host's new role, after it was promoted or demoted. Where every service is a process of its own
// this is what a supervisor is told: with the first it starts the managers' services.
func (l *Lab) SetRole(ctx context.Context, host, role string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	before := h.Role
	l.mu.Lock()
	h.Role = role
	err = l.save()
	l.mu.Unlock()
	if err != nil || !l.Separate || role != Manager || before == Manager {
		return err
	}
	for _, name := range Programs(Manager) {
		if !slices.Contains(Programs(Worker), name) {
			if err := l.StartProgram(ctx, host, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// LogFiles are the logs of the host's daemon, by name.
func (l *Lab) LogFiles(host string) (map[string]string, error) {
	h, err := l.Host(host)
	if err != nil {
		return nil, err
	}
	lib := filepath.Join(l.diskDir(h), "lib")
	if h.Role == Registry {
		return map[string]string{"registry": filepath.Join(lib, "registry.log")}, nil
	}
	files := map[string]string{}
	if l.VolumePlugin != "" && h.Role != Client {
		files[volumed] = filepath.Join(lib, volumed+".log")
	}
	files["containerd"] = filepath.Join(lib, "containerd", "containerd.log")
	if l.Separate && h.Role != Client {
		for _, name := range Programs(h.Role) {
			files[name] = filepath.Join(lib, name+".log")
		}
		return files, nil
	}
	files["skep"] = filepath.Join(lib, "skep.log")
	return files, nil
}

// KillProcess ends a host's newest process of that exact name, or all of them, with SIGKILL, and returns when they are gone.
func (l *Lab) KillProcess(ctx context.Context, host, name string, all bool) error {
	newest := "-n"
	if all {
		newest = ""
	}
	script := fmt.Sprintf(`pids=$(pgrep %s -x %s) || exit 1; kill -9 $pids; for p in $pids; do while kill -0 $p 2>/dev/null; do sleep 0.01; done; done`, newest, name)
	if _, err := l.must(ctx, host, "sh", "-c", script); err != nil {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	return nil
}

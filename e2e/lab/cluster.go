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
				return fmt.Errorf("more than one manager: %w", err)
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
	defer l.mu.Unlock()
	h.Joined = true
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
	defer l.mu.Unlock()
	l.Hosts = append(l.Hosts, h)
	return h, l.save()
}

// StartDaemon does what the init system does on a host that has one: it starts the node again after a boot or a crash.
func (l *Lab) StartDaemon(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	cmd, err := l.Command(context.WithoutCancel(ctx), h.Name, "/bin/sh", "-c",
		"exec setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null")
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the node of %s: %w", h.Name, err)
	}
	go func() { _ = cmd.Wait() }()
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
	return map[string]string{"skep": filepath.Join(lib, "skep.log"), "containerd": filepath.Join(lib, "containerd", "containerd.log")}, nil
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

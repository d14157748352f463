// Package volume keeps the volumes of a node: local ones, directories <data>/agent/volumes/<name>/_data or what mount(8) can
// mount there, and through Driver those of plug-ins; anonymous ones live and die with their task's record.
//
// It refuses to remove a named volume unless a person asks for it: the data is the user's. Failure story: what a volume is
// stands in meta.json beside its data, made with it in one rename. Which task holds which volume is a file of the task, written
// before the volume is mounted and removed after it was let go of, so an agent that was killed in between goes on. A volume is
// filled beside its data; what an interrupted filling left there is copied afresh, or moved on once it is complete. Whatever
// touches a file system that may hang is run with a limit, and never by the goroutine that waits for it.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/services/node-agent/internal/inroot"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

// Config is what a Store needs.
type Config struct {
	Root string
	Node string // the node's name, for what people read
	Path string // where mount(8) and its helpers are looked for, folders separated by colons; "" = PATH
	Log  *zap.Logger
	// Drivers gives a plug-in's driver by name. nil: there is only the local one.
	Drivers func(name string) (Driver, error)
	// Plugins are the names of the plug-ins there are.
	Plugins func() []string
	// Limit is how long a mount may take, or a file system to answer (default 30 s).
	Limit time.Duration
}

// Store is all volumes of a node.
type Store struct {
	cfg  Config
	root string
	uses *uses

	mu        sync.Mutex
	locks     map[string]*lock
	measuring map[string]bool
}

// Open makes the folder, and removes what a killed agent left half made or half removed.
func Open(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Limit <= 0 {
		cfg.Limit = 30 * time.Second
	}
	if cfg.Path == "" {
		cfg.Path = os.Getenv("PATH")
	}
	// 0711: a container's own user walks through to its data, and cannot list its neighbours.
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		return nil, fmt.Errorf("make volume directory: %w", err)
	}
	root, err := filepath.EvalSymlinks(cfg.Root) // as the kernel names mount points
	if err == nil {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return nil, fmt.Errorf("find volume directory: %w", err)
	}
	s := &Store{cfg: cfg, root: root, locks: map[string]*lock{}, measuring: map[string]bool{}}
	if s.uses, err = openUses(filepath.Join(root, ".tasks")); err != nil {
		return nil, err
	}
	for _, left := range []string{makingPrefix, removingPrefix} {
		paths, err := filepath.Glob(filepath.Join(root, left+"*"))
		if err != nil {
			return nil, fmt.Errorf("find what is left of volumes: %w", err)
		}
		for _, p := range paths {
			if err := s.removeTree(p); err != nil {
				cfg.Log.Warn("remove what is left of a volume", zap.Error(err))
			}
		}
	}
	return s, nil
}

func (s *Store) dir(name string) string  { return filepath.Join(s.root, name) }
func (s *Store) data(name string) string { return filepath.Join(s.root, name, "_data") }

// CheckName refuses what cannot be a volume's name.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fault.Usage("invalid volume name %q: use letters, digits, '_', '.' and '-', and begin with a letter or digit", name)
	}
	return nil
}

// lock is held by whoever works on a volume: one after the other.
type lock struct {
	held     chan struct{}
	users    int
	failed   error // how the newest mount went
	failedAt time.Time
}

// mounting is the work whose failure is that of everybody who waited for it too: tasks that start together do not wait for a
// dead server one after the other.
const mounting = "mount"

// endPatience is how long work that is not wanted any more is waited for.
const endPatience = 5 * time.Second

// do works on a volume alone. f may hang: the volume stays locked then, its caller does not.
func (s *Store) do(ctx context.Context, name, what string, limit time.Duration, f func(ctx context.Context) error) error {
	l := s.lock(name)
	began := time.Now()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case l.held <- struct{}{}:
	case <-ctx.Done():
		s.unlock(name, l)
		return fmt.Errorf("%s volume %s: %w", what, name, context.Cause(ctx))
	case <-timer.C:
		s.unlock(name, l)
		return fmt.Errorf("%s volume %s on node %s: what was begun before has not ended within %s: does what is mounted there answer?", what, name, s.cfg.Node, limit)
	}
	if what == mounting && l.failed != nil && l.failedAt.After(began) {
		err := l.failed
		<-l.held
		s.unlock(name, l)
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := f(ctx)
		if what == mounting && ctx.Err() == nil {
			l.failed, l.failedAt = err, time.Now()
		}
		<-l.held
		s.unlock(name, l)
		done <- err
	}()
	timer.Reset(limit)
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("%s volume %s on node %s: not done within %s: does what is mounted there answer?", what, name, s.cfg.Node, limit)
	case <-ctx.Done():
	}
	// What is under way is better ended than left behind, unless it hangs.
	select {
	case err := <-done:
		return err
	case <-time.After(min(limit, endPatience)):
		return fmt.Errorf("%s volume %s: %w", what, name, context.Cause(ctx))
	}
}

// lock finds or makes a volume's lock; unlock forgets it when nobody works on the volume or waits to.
func (s *Store) lock(name string) *lock {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.locks[name]
	if l == nil {
		l = &lock{held: make(chan struct{}, 1)}
		s.locks[name] = l
	}
	l.users++
	return l
}

func (s *Store) unlock(name string, l *lock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(s.locks, name)
	}
}

// BindSubpath mounts a path inside a volume at target. It never leaves the volume, whatever a container that has the volume
// does to it meanwhile or later.
func BindSubpath(data, sub, target string) error {
	if !filepath.IsLocal(sub) {
		return fmt.Errorf("volume subpath %q leaves the volume", sub)
	}
	if err := inroot.Bind(data, sub, target); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("volume subpath %q does not exist in the volume", sub)
		}
		return fmt.Errorf("volume subpath %q: %w", sub, err)
	}
	return nil
}

const anonymous = "_task."

func anonymousName(task string, n int) string { return fmt.Sprintf("%s%s.%d", anonymous, task, n) }

// AnonymousTask is the task whose own volume of that name is, "" for a named volume.
func AnonymousTask(name string) string {
	rest, ok := strings.CutPrefix(name, anonymous)
	if !ok {
		return ""
	}
	id, _, _ := strings.Cut(rest, ".")
	return id
}

// Anonymous returns the n-th volume of a task that named none, made and filled at its first use.
func (s *Store) Anonymous(ctx context.Context, task string, n int, fill Fill) (string, error) {
	name := anonymousName(task, n)
	if err := os.MkdirAll(s.data(name), 0o755); err != nil {
		return "", fmt.Errorf("make volume %s: %w", name, err)
	}
	return s.data(name), s.Fill(ctx, "", name, s.data(name), fill)
}

// Forget removes the anonymous volumes of a task whose record is gone. They are numbered without gaps; what a removal that failed
// leaves is the sweep's.
func (s *Store) Forget(task string) error {
	for n := 0; ; n++ {
		name := anonymousName(task, n)
		if _, err := os.Lstat(s.dir(name)); err != nil {
			return nil
		}
		if err := s.removeNow(name); err != nil {
			return err
		}
	}
}

func (s *Store) removeNow(name string) error {
	tmp, err := s.takeAway(name)
	if err != nil {
		return err
	}
	return s.removeTree(tmp)
}

// Sweep lets go of what tasks that are not known hold, and removes their anonymous volumes.
func (s *Store) Sweep(ctx context.Context, known func(task string) bool) error {
	var failed []error
	for _, task := range s.uses.tasks() {
		if !known(task) {
			failed = append(failed, s.Release(ctx, task))
		}
	}
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return errors.Join(append(failed, fmt.Errorf("list volumes: %w", err))...)
	}
	for _, e := range entries {
		if id := AnonymousTask(e.Name()); id != "" && !known(id) {
			failed = append(failed, s.removeNow(e.Name()))
		}
	}
	return errors.Join(failed...)
}

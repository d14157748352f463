package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
)

// local is the driver every node has.
type local struct{ s *Store }

// Create makes a volume. One of that name with the same options is fine; with others it is refused, and they are named.
func (l local) Create(ctx context.Context, name string, opts map[string]string) error {
	return l.s.createLocal(ctx, name, opts, nil)
}

func (s *Store) createLocal(ctx context.Context, name string, opts, labels map[string]string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if _, err := parseOptions(opts); err != nil {
		return fault.Invalid("volume %s: %v", name, err)
	}
	there := func() (bool, error) {
		have, err := s.readMeta(name)
		if err != nil {
			return !errors.Is(err, ErrNotFound), err
		}
		if diff := differences(have.Options, opts); diff != "" {
			return true, fault.Conflict("volume %s is on node %s already, with other options: %s; use another name, or remove it first", name, s.cfg.Node, diff)
		}
		return true, nil
	}
	if is, err := there(); is { // also while somebody mounts it
		return err
	}
	return s.do(ctx, name, "make", s.cfg.Limit, func(context.Context) error {
		if is, err := there(); is {
			return err
		}
		return s.make(name, newMeta(opts, labels))
	})
}

const (
	makingPrefix   = ".making-"
	removingPrefix = ".removing-"
)

// make makes a volume's folder whole: the name is there with everything, or not at all.
func (s *Store) make(name string, m *meta) error {
	tmp, err := os.MkdirTemp(s.root, makingPrefix)
	if err != nil {
		return fmt.Errorf("make volume %s: %w", name, err)
	}
	err = errors.Join(os.Chmod(tmp, 0o711), os.Mkdir(filepath.Join(tmp, "_data"), 0o755))
	if err == nil {
		// Whatever the umask is: a container's own user must get in.
		err = os.Chmod(filepath.Join(tmp, "_data"), 0o755)
	}
	if err == nil {
		err = writeMeta(tmp, m)
	}
	if err == nil {
		err = os.Rename(tmp, s.dir(name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make volume %s: %w", name, err), os.RemoveAll(tmp))
	}
	return nil
}

// Remove removes a volume that no task holds, with its data. What is mounted there is let go of, and not touched.
func (l local) Remove(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	s := l.s
	var tmp string
	err := s.do(ctx, name, "remove", s.cfg.Limit, func(context.Context) error {
		if _, err := os.Lstat(s.dir(name)); errors.Is(err, os.ErrNotExist) {
			return ErrNotFound
		}
		return s.uses.remove(Key{Local, name}, func() (err error) {
			if m, err := s.readMeta(name); err == nil && len(m.Options) > 0 {
				if err := s.unmount(name); err != nil {
					return err
				}
			}
			tmp, err = s.takeAway(name)
			return err
		})
	})
	if err == nil {
		err = s.removeTree(tmp) // as long as it takes
	}
	return err
}

// takeAway takes a volume's name away in one step, and returns where it is now.
func (s *Store) takeAway(name string) (string, error) {
	if err := s.notMountedBelow(s.dir(name)); err != nil {
		return "", fmt.Errorf("remove volume %s: %w", name, err)
	}
	tmp, err := os.MkdirTemp(s.root, removingPrefix)
	if err == nil {
		err = os.Rename(s.dir(name), filepath.Join(tmp, name))
	}
	if err != nil {
		return "", fmt.Errorf("remove volume %s: %w", name, err)
	}
	return tmp, nil
}

// removeTree removes what is left of a volume, unless something is mounted in it: that is not ours to remove.
func (s *Store) removeTree(dir string) error {
	if err := s.notMountedBelow(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func (s *Store) notMountedBelow(dir string) error {
	m, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	if len(m) > 0 {
		return fmt.Errorf("%s is mounted at %s on node %s: unmount it first", m[0].Source, m[0].Mountpoint, s.cfg.Node)
	}
	return nil
}

// Mount makes sure that what the volume's options name is mounted.
func (l local) Mount(ctx context.Context, name, _ string) (string, error) {
	s := l.s
	m, err := s.readMeta(name)
	if err == nil && len(m.Options) == 0 {
		err = os.MkdirAll(s.data(name), 0o755) // no meta.json: it may have been made half
	}
	if err != nil || len(m.Options) == 0 {
		return s.data(name), err
	}
	err = s.do(ctx, name, mounting, 2*s.cfg.Limit, func(ctx context.Context) error {
		mounted, err := mountedAt(s.data(name))
		if err != nil || mounted {
			return err
		}
		return s.mount(ctx, name, m.Options)
	})
	if err != nil {
		return "", err
	}
	return s.data(name), s.answers(ctx, name)
}

// answers tells whether the file system of a volume does: one whose server is gone must not hang what comes next.
func (s *Store) answers(ctx context.Context, name string) error {
	return s.do(ctx, name, "look into", s.cfg.Limit, func(context.Context) error {
		if _, err := os.Stat(s.data(name)); err != nil {
			return fmt.Errorf("volume %s on node %s: %w", name, s.cfg.Node, err)
		}
		return nil
	})
}

// Unmount lets go of a volume for a task, and of what is mounted there after the last. The task holds it until that is done, so
// that an agent that was killed meanwhile does it again, and nobody who sees the volume free finds something mounted there.
func (l local) Unmount(ctx context.Context, name, task string) error {
	s, k := l.s, Key{Local, name}
	return s.do(ctx, name, "unmount", s.cfg.Limit, func(context.Context) error {
		m, err := s.readMeta(name)
		last := !slices.ContainsFunc(s.uses.holders(k), func(holder string) bool { return holder != task })
		if err == nil && len(m.Options) > 0 && last {
			if err := s.unmount(name); err != nil {
				return err // the task still holds it: this is tried again
			}
		}
		return errors.Join(err, s.uses.drop(task, k))
	})
}

// unmount ends what is mounted at a volume. What does not let go is detached: it goes once nobody uses it any more.
func (s *Store) unmount(name string) error {
	at := s.data(name)
	for range 16 { // somebody may have mounted over it
		mounted, err := mountedAt(at)
		if err != nil || !mounted {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- unix.Unmount(at, unix.UMOUNT_NOFOLLOW) }()
		select {
		case err = <-ended:
		case <-time.After(s.cfg.Limit / 3):
			err = fmt.Errorf("not done within %s", s.cfg.Limit/3)
		}
		if err == nil || errors.Is(err, unix.EINVAL) {
			continue
		}
		s.cfg.Log.Warn("a volume does not let go: detaching it, it is unmounted once nobody uses it", zap.String("volume", name), zap.Error(err))
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount volume %s on node %s: %w", name, s.cfg.Node, err)
		}
	}
	return fmt.Errorf("unmount volume %s on node %s: too much is mounted at %s", name, s.cfg.Node, at)
}

// Get tells of a volume.
func (l local) Get(_ context.Context, name string) (Info, error) {
	if CheckName(name) != nil && AnonymousTask(name) == "" {
		return Info{}, ErrNotFound
	}
	m, err := l.s.readMeta(name)
	if err != nil {
		return Info{}, err
	}
	mounted, err := mountedAt(l.s.data(name))
	if err != nil {
		return Info{}, err
	}
	return l.s.info(name, m, mounted), nil
}

func (s *Store) info(name string, m *meta, mounted bool) Info {
	return Info{
		Name: name, Driver: Local, Mountpoint: s.data(name), CreatedAt: m.Created, Labels: m.Labels, Options: m.Options,
		Mounted: mounted && len(m.Options) > 0, Anonymous: AnonymousTask(name) != "",
	}
}

// List tells of all of them, by name.
func (l local) List(context.Context) ([]Info, error) {
	s := l.s
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.root))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []Info
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || CheckName(name) != nil && AnonymousTask(name) == "" {
			continue
		}
		m, err := s.readMeta(name)
		if errors.Is(err, ErrNotFound) {
			continue // it went meanwhile
		}
		if err != nil {
			s.cfg.Log.Warn("list volumes", zap.Error(err))
			m = &meta{}
		}
		at := s.data(name)
		out = append(out, s.info(name, m, slices.ContainsFunc(mounts, func(i *mountinfo.Info) bool { return i.Mountpoint == at })))
	}
	return out, nil
}

// Scope says that each node has its own.
func (local) Scope(context.Context) (string, error) { return ScopeLocal, nil }

func mountedAt(dir string) (bool, error) {
	m, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		return false, fmt.Errorf("list mounts: %w", err)
	}
	return len(m) > 0, nil
}

package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/atomicfile"
)

const (
	// Within is how long a daemon may take from its start until it serves.
	Within = 90 * time.Second
	// backTries is how often the old program is started, and backPause what lies between.
	backTries = 3
	backPause = 2 * time.Second
)

// Daemon is the node's daemon, seen from another process.
type Daemon interface {
	// StartAgain ends it, starts the program in place and returns when it serves, or why it does not.
	StartAgain(ctx context.Context) error
	// Version is what the one that runs says it is.
	Version(ctx context.Context) (string, error)
}

// Watch puts the staged program in place and starts the daemon with it. When that does not serve in time, it puts the old one
// back; the record says why. It runs in a process of the old program. An error means that the node is to be looked after.
func (s Site) Watch(ctx context.Context, d Daemon, log *zap.Logger) error {
	rec, err := s.Load()
	if err != nil || rec == nil {
		return err
	}
	log = log.With(zap.String("from", rec.From), zap.String("to", rec.To), zap.String("by", rec.By))
	switch rec.Step {
	case Staged:
		if err := s.place(rec); err != nil {
			if is, serr := s.isNew(rec); is || serr != nil {
				err = errors.Join(err, s.restore()) // the daemon runs the old one
			}
			return errors.Join(err, s.remove(), s.end(rec, Undone, err))
		}
	case Placed:
		if is, err := s.isNew(rec); err != nil {
			return err
		} else if !is { // the one who put the old one back died before it said so
			return s.end(rec, Undone, errors.New("it was interrupted"))
		}
	default:
		return nil
	}
	began := time.Now()
	log.Info("upgrade: the daemon starts with the new program")
	if err = s.begin(ctx, d, rec.To); err == nil {
		log.Info("upgrade done", zap.Duration("dur", time.Since(began)))
		return s.end(rec, Done, nil)
	}
	log.Error("upgrade: the new program does not come up; the old one is put back", zap.Error(err))
	return s.back(ctx, d, rec, err)
}

// place makes the staged program the one in place.
func (s Site) place(rec *Record) error {
	if err := os.Rename(s.fresh(), s.Program); err != nil {
		return fmt.Errorf("upgrade: put the new program in place: %w", err)
	}
	s.passing("renamed")
	if err := atomicfile.SyncDir(filepath.Dir(s.Program)); err != nil {
		return fmt.Errorf("upgrade: put the new program in place: %w", err)
	}
	rec.Step = Placed
	err := s.save(rec)
	s.passing("placed")
	return err
}

// begin starts the daemon and finds out whether it is the new one.
func (s Site) begin(ctx context.Context, d Daemon, version string) error {
	ctx, cancel := context.WithTimeout(ctx, Within)
	defer cancel()
	err := d.StartAgain(ctx)
	s.passing("started")
	if err != nil {
		return err
	}
	is, err := d.Version(ctx)
	if err == nil && is != version {
		err = fmt.Errorf("the daemon that was started is version %s: it is not started from %s", is, s.Program)
	}
	return err
}

// back puts the old program in place again and starts it.
func (s Site) back(ctx context.Context, d Daemon, rec *Record, why error) error {
	err := s.restore()
	if err == nil {
		s.passing("restored")
		err = s.end(rec, Undone, why) // before its start, which tells it
	}
	if err != nil {
		return fmt.Errorf("upgrade: put the old program back: %w; it lies at %s", err, s.Old())
	}
	for try := 1; ; try++ {
		err := s.begin(ctx, d, rec.From)
		if err == nil || try == backTries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(backPause):
		}
	}
}

// restore makes PROGRAM.old the program in place. It stays where it is, too.
func (s Site) restore() error {
	if err := s.remove(); err != nil {
		return err
	}
	if os.Link(s.Old(), s.fresh()) != nil { // some file systems have no links
		old := s
		old.Running = s.Old()
		if err := old.copyRunning(s.fresh()); err != nil {
			return err
		}
	}
	if err := os.Rename(s.fresh(), s.Program); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(s.Program))
}

// Resume is for a daemon that starts: it says whether a watcher must go on, which has died or never was. An upgrade that had
// replaced nothing is over. The caller holds the upgrade (member.HoldUpgrade), so that nobody is at it.
func (s Site) Resume() (watch bool, _ error) {
	rec, err := s.Load()
	if err != nil || rec == nil || rec.Step == Done || rec.Step == Undone {
		return false, err
	}
	is, err := s.isNew(rec)
	switch {
	case err != nil:
		return false, err
	case !is:
		return false, errors.Join(s.remove(), s.end(rec, Undone, errors.New("it was interrupted before the new program was in place")))
	case rec.Step == Staged:
		rec.Step = Placed
		return true, s.save(rec)
	}
	return true, nil
}

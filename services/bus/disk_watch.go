package bus

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// watchEvery is the pause between two small durable writes beside the store.
	watchEvery = 3 * time.Second
	// hangsAfter is how long one may take before that is said. Elections are over by then (electBefore), and whoever wrote to what
	// this manager led has noticed.
	hangsAfter = 5 * time.Second
	watchFile  = "watch"
)

// diskWatch notices a disk that neither writes nor fails. Nothing else does: who waits for it says nothing, and this manager's
// connections answer on.
type diskWatch struct {
	dir  string
	log  *zap.Logger
	hang time.Duration // hangsAfter

	mu    sync.Mutex
	since time.Time // when the write that is under way began, zero = none is
	said  time.Time
}

func newDiskWatch(dir string, log *zap.Logger) *diskWatch {
	return &diskWatch{dir: dir, log: log, hang: hangsAfter}
}

// run writes until ctx ends. It does not wait for a write that hangs: that goroutine ends when the disk goes on.
func (d *diskWatch) run(ctx context.Context, write func() error) {
	look := time.NewTicker(min(time.Second, d.hang))
	defer look.Stop()
	done := make(chan error, 1)
	var next time.Time
	busy := false
	for {
		now := time.Now()
		if !busy && !now.Before(next) {
			busy = true
			d.began(now)
			go func() { done <- write() }()
		}
		select {
		case <-ctx.Done():
			return
		case err := <-done:
			busy, next = false, time.Now().Add(watchEvery)
			d.ended(err)
		case <-look.C:
			d.look(time.Now())
		}
	}
}

func (d *diskWatch) began(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.since = now
}

// ended says that the disk goes on, if it was said that it hangs. A write that fails is the store's to tell of: it stops.
func (d *diskWatch) ended(err error) {
	d.mu.Lock()
	took, said := time.Since(d.since), !d.said.IsZero()
	d.since, d.said = time.Time{}, time.Time{}
	d.mu.Unlock()
	if said {
		d.log.Warn("the disk of this manager's store goes on", zap.Duration("dur", took.Round(time.Millisecond)), zap.Error(err))
	}
}

func (d *diskWatch) look(now time.Time) {
	d.mu.Lock()
	took := now.Sub(d.since)
	say := !d.since.IsZero() && took > d.hang && now.Sub(d.said) > sayEvery
	if say {
		d.said = now
	}
	d.mu.Unlock()
	if say {
		d.log.Error("this manager's store stands still, as its disk hangs: a small write has not ended. The others go on without it. Look at the disk (dmesg, iostat -x 1)",
			zap.String("dir", d.dir), zap.Duration("dur", took.Round(time.Second)))
	}
}

// durably writes a little into a file of the directory and waits until it is on the disk.
func durably(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, watchFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt([]byte{1}, 0); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

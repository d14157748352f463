package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
)

// Scheduled backups. Each manager makes its own and asks nobody: which times there are follows from the cluster's record,
// the same for all, and what was made of them from the names of the files. So a leader that changes, a manager that starts
// anew or two processes of one make neither two of one time nor none. A time that was missed is made up for once, by the
// newest backup that is due.

const (
	// keepEvery is how soon a clock that was put right is noticed.
	keepEvery = 10 * time.Second
	// keptWithin is how long one backup may take.
	keptWithin = 30 * time.Minute
	// keptAgain and keptLongest lie between attempts after one that failed.
	keptAgain, keptLongest = time.Minute, 15 * time.Minute
)

// keeper makes the scheduled backups of a manager.
type keeper struct {
	shelf   *backup.Shelf // nil = here are none
	changed chan struct{} // the cluster's record

	mu       sync.Mutex
	cluster  *skepv1.Cluster
	failed   string
	failedAt time.Time
	// Of the time that is being tried.
	due   time.Time
	tries int
	again time.Time
}

func newKeeper(dataDir string) *keeper {
	k := &keeper{changed: make(chan struct{}, 1)}
	if dataDir != "" {
		k.shelf = backup.ShelfIn(dataDir)
	}
	return k
}

// take takes in the cluster's record.
func (k *keeper) take(d kv.Delta) {
	for _, e := range d.Entries {
		c := &skepv1.Cluster{}
		if e.Key != keys.Cluster.Key() || e.Deleted || proto.Unmarshal(e.Value, c) != nil {
			continue
		}
		k.mu.Lock()
		if !proto.Equal(k.cluster.GetSpec().GetBackups(), c.GetSpec().GetBackups()) {
			k.due, k.tries, k.again, k.failed = time.Time{}, 0, time.Time{}, ""
		}
		k.cluster = c
		k.mu.Unlock()
	}
	k.poke()
}

// retry tries at once what failed.
func (k *keeper) retry() {
	k.mu.Lock()
	k.again = time.Time{}
	k.mu.Unlock()
	k.poke()
}

func (k *keeper) poke() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// keepBackups makes what is due until ctx ends.
func (s *Service) keepBackups(ctx context.Context) {
	k := s.keeper
	if k.shelf == nil || s.cfg.NodeID == "" {
		return
	}
	feed := kv.Follow(ctx, s.js, subject.Spec, k.take, keys.Cluster.Key())
	defer feed.Close()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.changed:
		case <-t.C:
		}
		t.Reset(s.keepBackup(ctx))
	}
}

// keepBackup makes the newest backup that is due and not there, and returns when to look again.
func (s *Service) keepBackup(ctx context.Context) time.Duration {
	k, now := s.keeper, s.cfg.Now()
	k.mu.Lock()
	c := k.cluster
	due, next := dueOf(c, now)
	if !due.Equal(k.due) {
		k.due, k.tries, k.again = due, 0, time.Time{}
	}
	wait := keepEvery
	if !next.IsZero() {
		wait = min(wait, max(next.Sub(now), 0))
	}
	early := now.Before(k.again) && k.again.Sub(now) <= keptLongest // else the clock was put back
	k.mu.Unlock()
	if due.IsZero() || early || k.shelf.Has(backup.FileName(c.Meta.Id, due)) {
		return wait
	}
	release, ok, err := k.shelf.Hold()
	switch {
	case err == nil && !ok: // another process of this node makes it
		return wait
	case err == nil:
		err = s.makeKept(ctx, c, due)
		release()
	}
	if ctx.Err() == nil {
		s.keptEnded(ctx, due, err)
	}
	return 0
}

// dueOf is the newest time at which a backup was due, and the next; zero when there is none.
func dueOf(c *skepv1.Cluster, now time.Time) (due, next time.Time) {
	p := c.GetSpec().GetBackups()
	sched, err := spec.BackupSchedule(p)
	if sched == nil || err != nil || c.GetMeta().GetId() == "" {
		return time.Time{}, time.Time{}
	}
	since := p.GetSince().AsTime()
	if since.After(now) { // set by a clock that has been put right since
		return time.Time{}, sched.Next(now)
	}
	due = sched.Last(since, now)
	from := due
	if from.IsZero() {
		from = since
	}
	return due, sched.Next(from)
}

// makeKept makes the backup of a time.
func (s *Service) makeKept(ctx context.Context, c *skepv1.Cluster, due time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, keptWithin)
	defer cancel()
	shelf, name := s.keeper.shelf, backup.FileName(c.Meta.Id, due)
	if shelf.Has(name) { // made while this one waited for the shelf
		return nil
	}
	if err := shelf.Clear(); err != nil {
		return err
	}
	h := &skepv1.BackupHeader{MadeAt: timestamppb.New(s.cfg.Now()), SkepVersion: s.cfg.Version, MadeBy: s.cfg.NodeID, MadeOn: s.cfg.Hostname, AskedBy: "the schedule"}
	key, err := s.keptKey(h)
	if err != nil {
		return err
	}
	size, err := shelf.Put(name,
		func(w io.Writer) error { return s.WriteBackup(ctx, w, h, key) },
		func(r io.Reader) error {
			f, err := backup.Open(r)
			if err != nil {
				return err
			}
			in, err := f.Unlock(key)
			if err != nil {
				return err
			}
			return in.Each(backup.Visit{})
		})
	if err != nil {
		return err
	}
	s.tellLock(ctx, "backup", map[string]string{"opens": backup.Opener(h), "file": name, "size": strconv.FormatUint(size, 10), "due": due.UTC().Format(time.RFC3339)})
	return s.pruneKept(c)
}

// pruneKept takes away what is too much. What another node made of this machine is not touched while a restore is open:
// it may be what the cluster was restored from.
func (s *Service) pruneKept(c *skepv1.Cluster) error {
	gone, err := s.keeper.shelf.Prune(int(c.Spec.GetBackups().GetKeep()), func(k backup.Shelved) bool {
		return !c.Spec.Restored || k.Header.MadeBy == s.cfg.NodeID
	})
	if len(gone) > 0 {
		s.log.Info("old scheduled backups removed", zap.Strings("files", gone))
	}
	return err
}

// keptEnded notes how it went. Each time is told once, however often it is tried.
func (s *Service) keptEnded(ctx context.Context, due time.Time, err error) {
	k, now := s.keeper, s.cfg.Now()
	k.mu.Lock()
	if err == nil {
		k.failed, k.again = "", time.Time{}
		k.mu.Unlock()
		return
	}
	k.tries++
	first := k.tries == 1
	k.failed, k.failedAt = err.Error(), now
	k.again = now.Add(min(keptAgain<<min(k.tries-1, 10), keptLongest))
	again := k.again
	k.mu.Unlock()
	s.log.Error("the scheduled backup was not made", zap.Time("due", due), zap.Time("again", again), zap.Error(err))
	if first {
		s.tellLock(ctx, "backup-failed", map[string]string{"why": err.Error(), "due": due.UTC().Format(time.RFC3339)})
	}
}

// keptBackups lists what lies here. What stands in clear in the files says nothing that an operator may not know.
func (s *Service) keptBackups(context.Context, *skepv1.Empty) (*skepv1.KeptBackupsReply, error) {
	out := &skepv1.KeptBackupsReply{NodeId: s.cfg.NodeID, Hostname: s.cfg.Hostname}
	k := s.keeper
	if k.shelf == nil {
		return out, nil
	}
	all, err := k.shelf.List()
	if err != nil {
		return nil, fault.Unavailable("%v", err)
	}
	for _, x := range all[:min(len(all), 2*spec.MaxBackupKeep)] {
		x.Header.Sequences = nil // of no use to people, and the largest part
		out.Backups = append(out.Backups, &skepv1.KeptBackup{Name: x.Name, Size: x.Size, Due: timestamppb.New(x.Due), Header: x.Header})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed != "" {
		out.Failed, out.FailedAt = k.failed, timestamppb.New(k.failedAt)
	}
	if _, next := dueOf(k.cluster, s.cfg.Now()); !next.IsZero() {
		out.Next = timestamppb.New(next)
	}
	return out, nil
}

// handleKept serves what an open vault answers about scheduled backups.
func (s *Service) handleKept(srv *rpc.Server) error {
	err := api.Handle(srv, api.BackupKey, s.setBackupKey)
	if s.cfg.NodeID != "" {
		err = errors.Join(err, api.Handle(srv, api.VaultBackups.At(s.cfg.NodeID), s.keptBackups))
	}
	if err != nil {
		return fmt.Errorf("serve scheduled backups: %w", err)
	}
	return nil
}

package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
)

// A backup is everything, so the vault makes it: it has the master key, and nobody else may. What leaves this process is
// sealed. Only admins may ask, each time is an event, and one is made at a time.

const (
	// backupWithin is how long the store may take to be found at one instant.
	backupWithin = time.Minute
	// backupCuts is how many cuts are taken until one fits together. What every one of them has is not the cut's fault.
	backupCuts = 5
	// backupApart lies between two cuts: longer than a change of several steps takes.
	backupApart = 300 * time.Millisecond
)

// serveBackups lets admins take backups from this node.
func (s *Service) serveBackups() (io.Closer, error) {
	if s.cfg.NodeID == "" {
		return io.NopCloser(nil), nil
	}
	return stream.Serve(s.cfg.NC, api.VaultBackup.At(s.cfg.NodeID).Subject(), s.cfg.NodeID, func(ctx context.Context, sess *stream.Session, req []byte) {
		err := s.backup(ctx, sess, req)
		code := 0
		if err != nil {
			code = 1
			s.log.Warn("no backup was made", zap.String("by", rpc.Asker(ctx)), zap.Error(err))
		}
		_ = sess.Exit(code, err) // who asked may be gone
	}, stream.WithLimit(1), stream.WithQueue(subject.Queue))
}

func (s *Service) backup(ctx context.Context, sess *stream.Session, req []byte) error {
	r := &skepv1.BackupRequest{}
	if err := proto.Unmarshal(req, r); err != nil {
		return fault.Invalid("make a backup: the request cannot be read: %v", err)
	}
	h := &skepv1.BackupHeader{MadeAt: timestamppb.New(s.cfg.Now()), SkepVersion: s.cfg.Version, MadeBy: s.cfg.NodeID, MadeOn: s.cfg.Hostname, AskedBy: rpc.Asker(ctx)}
	key, err := s.backupKey(r, h)
	if err != nil {
		return err
	}
	if err := sess.Accept(); err != nil {
		return err
	}
	s.tellLock(ctx, "backup", map[string]string{"opens": backup.Opener(h)})
	out := sess.Writer(stream.Out)
	if err := s.WriteBackup(ctx, out, h, key); err != nil {
		return err
	}
	return out.Close()
}

// backupKey is what the file is to be sealed under; the header says which it is.
func (s *Service) backupKey(r *skepv1.BackupRequest, h *skepv1.BackupHeader) (backup.Key, error) {
	if r.UnlockKey {
		cur := s.lock.picture.now()
		if !cur.Info().GetOn() || s.stale(cur) {
			return nil, fault.Invalid("make a backup under the unlock key: autolock is not turned on; give a passphrase, or turn it on: skep swarm update --autolock")
		}
		h.UnlockKey = &skepv1.BackupUnlockKey{Id: cur.info.Id, MadeAt: cur.info.MadeAt}
		return backup.Unlock{Key: cur.key}, nil
	}
	if err := backup.CheckPassphrase(r.Passphrase); err != nil {
		return nil, fault.Invalid("make a backup: %v", err)
	}
	key, err := s.idx.curveKey().FromClient(r.SealedKey, skepv1.SecretKind_SECRET_KIND_UNSPECIFIED, seal.BackupKey, 0)
	if err != nil || len(key) != backup.KeySize {
		return nil, fault.Invalid("make a backup: its key cannot be read: %v", err)
	}
	h.Passphrase = r.Passphrase
	return backup.Derived(key), nil
}

// WriteBackup writes a backup of the store as it is at an instant of the call. Of h it fills in what the store says.
func (s *Service) WriteBackup(ctx context.Context, w io.Writer, h *skepv1.BackupHeader, key backup.Key) error {
	cut, places, found, err := s.cut(ctx)
	if err != nil {
		return fault.Unavailable("make a backup: %v", err)
	}
	for _, text := range found[:min(len(found), 20)] {
		s.log.Warn("the store itself does not fit together; the backup has it as it is", zap.String("what", text))
	}
	content := backup.Content(cut.Buckets)
	ca := s.idx.authorities()
	h.ClusterId, h.CaDigest, h.Timed, h.Findings = ca.current.ClusterID(), pki.Digest(ca.token()), cut.Timed, uint32(len(found))
	h.Counts, h.Sequences = content.Counts(len(places)), map[string]uint64{}
	for b, seq := range cut.Sequences {
		h.Sequences[string(b)] = seq
	}
	for _, e := range content[subject.NodeB] {
		if e.Key == keys.Managers.Key() {
			set := &skepv1.ManagerSet{}
			if err := proto.Unmarshal(e.Value, set); err != nil {
				return fmt.Errorf("make a backup: read the group of managers: %w", err)
			}
			h.Epoch = set.Epoch
		}
	}
	out, err := backup.NewWriter(w, h, key)
	if err != nil {
		return err
	}
	s.lock.mu.Lock()
	err = out.Master(s.lock.master)
	s.lock.mu.Unlock()
	for _, b := range backup.Buckets() {
		if err == nil {
			err = out.Bucket(b, cut.Sequences[b])
		}
		if b == subject.Value && err == nil {
			err = s.writeValues(ctx, out, places)
		}
		for _, e := range content[b] {
			if err == nil && backup.KeptKey(b, e.Key) {
				err = out.Entry(e)
			}
		}
	}
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	s.log.Info("backup made", zap.String("by", h.AskedBy), zap.Any("counts", h.Counts), zap.Bool("timed", cut.Timed), zap.Duration("dur", s.cfg.Now().Sub(h.MadeAt.AsTime())))
	return nil
}

// writeValues writes the values that records of the cut name. They are never changed, so they are read one by one, now;
// their order says nothing.
func (s *Service) writeValues(ctx context.Context, out *backup.Writer, places []string) error {
	for i, place := range places {
		e, err := s.values.Read(ctx, place)
		if errors.Is(err, kv.ErrNotFound) {
			return fault.Unavailable("make a backup: a secret was removed meanwhile; try again")
		}
		if err != nil {
			return fault.Unavailable("make a backup: %v", err)
		}
		e.Revision = uint64(i + 1)
		if err := out.Entry(e); err != nil {
			return err
		}
	}
	return nil
}

// cut is the store at one instant, but for the values; places are those that its records name. found is what does not fit
// together in the store itself.
func (s *Service) cut(ctx context.Context) (cut *kv.Cut, places, found []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, backupWithin)
	defer cancel()
	buckets := backup.Buckets()
	for i, b := range buckets {
		if b == subject.Value {
			buckets = append(buckets[:i:i], buckets[i+1:]...)
			break
		}
	}
	c, err := kv.NewCutter(ctx, s.js, buckets...)
	if err != nil {
		return nil, nil, nil, err
	}
	defer c.Close()
	always := map[string]int{}
	for try := 1; ; try++ {
		if cut, err = c.Take(ctx); err != nil {
			return nil, nil, nil, err
		}
		// Later than the cut: what it names and is not there was removed since, or is missing.
		there, err := s.values.Keys(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		values := make(map[string]bool, len(there))
		for place := range there {
			values[place] = true
		}
		secrets, named := auditSecrets(s.idx.seal, backup.Content(cut.Buckets), values)
		here := append(backup.Audit(backup.Content(cut.Buckets)), secrets...)
		for _, text := range here {
			always[text]++
		}
		if len(here) == 0 || try == backupCuts {
			for text, n := range always {
				if n == try {
					found = append(found, text)
				}
			}
			if len(found) < len(here) {
				return nil, nil, nil, fmt.Errorf("the store changes too fast to be found whole (%s): try again", here[0])
			}
			return cut, named, found, nil
		}
		s.log.Debug("a cut of the store does not fit together, taking another", zap.Strings("why", here))
		select {
		case <-ctx.Done():
			return nil, nil, nil, ctx.Err()
		case <-time.After(backupApart):
		}
	}
}

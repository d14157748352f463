package vault

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/seal"
)

// Nobody is there to type a passphrase when a scheduled backup is made, and a backup that this cluster alone could open
// would be none. So what a passphrase makes of itself is kept, sealed under the master key: who has that has everything a
// backup holds anyway. Without a passphrase they are sealed under the unlock key.

// backupKeyLocked takes in the record. The index's lock is held.
func (x *index) backupKeyLocked(e kv.Entry) error {
	defer x.rekeyed()
	if e.Deleted {
		x.backups, x.backupsRev = nil, 0
		return nil
	}
	r := &skepv1.BackupKeyRecord{}
	if err := x.seal.openMessage(e.Key, e.Value, r); err != nil {
		return err
	}
	x.backups, x.backupsRev = r, e.Revision
	return nil
}

func (x *index) backupKey() (*skepv1.BackupKeyRecord, uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.backups, x.backupsRev
}

// keptKey is what the next scheduled backup is sealed under; the header then says which it is.
func (s *Service) keptKey(h *skepv1.BackupHeader) (backup.Key, error) {
	if r, _ := s.idx.backupKey(); r != nil {
		h.Passphrase = r.Passphrase
		return backup.Derived(r.Key), nil
	}
	cur := s.lock.picture.now()
	if !cur.Info().GetOn() || s.stale(cur) {
		return nil, errors.New("there is nothing to seal it under: give a passphrase (skep swarm update --backup-passphrase-file FILE), or turn autolock on")
	}
	h.UnlockKey = &skepv1.BackupUnlockKey{Id: cur.info.Id, MadeAt: cur.info.MadeAt}
	return backup.Unlock{Key: cur.key}, nil
}

// setBackupKey changes what scheduled backups are sealed under, if asked to, and says what that is. It needs an admin: who
// knows the passphrase and has a file has the cluster.
func (s *Service) setBackupKey(ctx context.Context, r *skepv1.BackupKeyRequest) (*skepv1.BackupKeyReply, error) {
	if err := s.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("look what scheduled backups are sealed under: %v", err)
	}
	_, over := s.idx.backupKey()
	var rev uint64
	var err error
	switch {
	case r.Passphrase != nil && r.UnlockKey:
		return nil, fault.Invalid("set what scheduled backups are sealed under: a passphrase and the unlock key exclude each other")
	case r.Passphrase != nil:
		rev, err = s.storeBackupKey(ctx, r, over)
	case r.UnlockKey:
		if cur := s.lock.picture.now(); !cur.Info().GetOn() || s.stale(cur) {
			return nil, fault.Invalid("seal scheduled backups under the unlock key: autolock is not turned on; give a passphrase, or turn it on: skep swarm update --autolock")
		}
		if over != 0 {
			err = s.bucket.Delete(ctx, keys.BackupKey.Key(), over)
		}
	default:
		return s.backupKeyNow(), nil
	}
	switch {
	case errors.Is(err, kv.ErrConflict):
		return nil, fault.Conflict("somebody else changed just now what scheduled backups are sealed under: look, then try again")
	case fault.Of(err) == fault.CodeInvalid:
		return nil, err
	case err != nil:
		return nil, fault.Unavailable("what scheduled backups are sealed under may have been changed or not: try again: %v", err)
	}
	if rev != 0 {
		err = s.feed.Wait(ctx, rev)
	} else {
		err = s.feed.Current(ctx)
	}
	if err != nil {
		return nil, fault.Unavailable("what scheduled backups are sealed under was changed, but cannot be read again: %v", err)
	}
	now := s.backupKeyNow()
	s.tellLock(ctx, "backup-key", map[string]string{"opens": now.Opens})
	return now, nil
}

func (s *Service) storeBackupKey(ctx context.Context, r *skepv1.BackupKeyRequest, over uint64) (uint64, error) {
	if err := backup.CheckPassphrase(r.Passphrase); err != nil {
		return 0, fault.Invalid("set the passphrase of scheduled backups: %v", err)
	}
	key, err := s.idx.curveKey().FromClient(r.SealedKey, skepv1.SecretKind_SECRET_KIND_UNSPECIFIED, seal.BackupKey, 0)
	defer clear(key)
	if err != nil || len(key) != backup.KeySize {
		return 0, fault.Invalid("set the passphrase of scheduled backups: its key cannot be read: %v", err)
	}
	p := proto.CloneOf(r.Passphrase)
	p.SetAt = timestamppb.New(s.cfg.Now())
	value, err := s.idx.seal.sealMessage(keys.BackupKey.Key(), &skepv1.BackupKeyRecord{Passphrase: p, Key: key})
	if err != nil {
		return 0, err
	}
	return s.bucket.Set(ctx, keys.BackupKey.Key(), value, over)
}

func (s *Service) backupKeyNow() *skepv1.BackupKeyReply {
	h := &skepv1.BackupHeader{}
	if _, err := s.keptKey(h); err != nil {
		return &skepv1.BackupKeyReply{}
	}
	return &skepv1.BackupKeyReply{Opens: backup.Opener(h)}
}

package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
)

var keyCA = keys.CA.Key()

func tokenKey(r pki.Role) string { return keys.Token.Key(short(r)) }

// tokenRecord is what stands sealed in the bucket.
type tokenRecord struct {
	Secret  string    `json:"secret"`
	Rotated time.Time `json:"rotated,omitzero"`
	// Former are digests of the last secrets, so that a rotated token is told from a wrong one.
	Former [][]byte `json:"former,omitempty"`
}

// formerKept is how many rotated secrets are remembered.
const formerKept = 20

func (t tokenRecord) matches(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Secret), []byte(secret)) == 1
}

func (t tokenRecord) was(secret string) bool {
	sum, found := sha256.Sum256([]byte(secret)), 0
	for _, f := range t.Former {
		found |= subtle.ConstantTimeCompare(f, sum[:])
	}
	return found == 1
}

func (t tokenRecord) rotate(now time.Time) tokenRecord {
	sum := sha256.Sum256([]byte(t.Secret))
	former := append([][]byte{sum[:]}, t.Former...)
	return tokenRecord{Secret: pki.NewSecret(), Rotated: now, Former: former[:min(len(former), formerKept)]}
}

// index is the opened content of the bucket, fed by its watcher.
type index struct {
	seal *sealer
	lock *lockPicture
	log  *zap.Logger

	mu      sync.Mutex
	auth    *authorities
	turned  chan struct{}    // the record of the roots changed
	curve   *seal.Key        // what clients seal values to
	public  *skepv1.VaultKey // its public half, with the CA's word
	tokens  map[string]token // by key
	users   map[string]user  // by serial number
	objects objects

	backups    *skepv1.BackupKeyRecord // what scheduled backups are sealed under, nil = the unlock key
	backupsRev uint64
	rekeyed    func() // that record changed: what failed for it is tried again

	progress    *skepv1.CAProgress // of a rotation
	progressRev uint64
}

type token struct {
	tokenRecord
	revision uint64
}

// source is the bucket, as FollowAll takes it. Of a record that cannot be read the last good content stays in use.
func (x *index) source() kv.Source {
	fold := kv.Fold{Lock: &x.mu, Log: x.log}
	return fold.Source(subject.Secret, x.entryLocked, func(kv.Delta) {
		x.tokens, x.users, x.objects = map[string]token{}, map[string]user{}, newObjects()
		x.lock.reset()
		x.backups, x.backupsRev = nil, 0
		x.progress, x.progressRev = nil, 0
	})
}

func (x *index) entryLocked(e kv.Entry) error {
	switch f, id := keys.Of(subject.Secret, e.Key); f {
	case keys.CA:
		return x.caLocked(e)
	case keys.Rotation:
		return x.progressLocked(e)
	case keys.Curve:
		if e.Deleted {
			return nil
		}
		seed, err := x.seal.openBytes(e.Key, e.Value)
		if err != nil {
			return err
		}
		defer seal.Wipe(seed)
		if x.curve, err = seal.ParseKey(seed); err != nil {
			return err
		}
		x.public = nil
	case keys.Ledger:
		return x.objects.takeLedger(x.seal, e)
	case keys.Object:
		return x.objects.takeObject(x.seal, id, e)
	case keys.Token:
		if e.Deleted {
			delete(x.tokens, e.Key)
			return nil
		}
		var r tokenRecord
		if err := x.seal.open(e.Key, e.Value, &r); err != nil {
			return err
		}
		x.tokens[e.Key] = token{r, e.Revision}
	case keys.User:
		return x.userLocked(id, e)
	case keys.BackupKey:
		return x.backupKeyLocked(e)
	case keys.Unlock, keys.ManagerLock:
		return x.lock.take(x.seal, e)
	}
	return nil
}

// curveKey is what clients seal values to. It is there once the vault serves.
func (x *index) curveKey() *seal.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.curve
}

// publicKey is its public half, with the CA's word for it.
func (x *index) publicKey() (*skepv1.VaultKey, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.public == nil {
		k, err := x.curve.Public(x.auth.signs, x.auth.others()...)
		if err != nil {
			return nil, err
		}
		x.public = k
	}
	return x.public, nil
}

func (x *index) token(r pki.Role) (token, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	t, ok := x.tokens[tokenKey(r)]
	return t, ok
}

// errForeign: trying again cannot help.
var errForeign = errors.New("the broker holds another cluster's CA")

// makeCurve sees to the key that clients seal values to. Of several vaults that start at once, one makes it.
func (s *Service) makeCurve(ctx context.Context) error {
	if s.idx.curveKey() != nil {
		return nil
	}
	k, err := seal.NewKey()
	if err != nil {
		return err
	}
	seed, err := k.Seed()
	if err != nil {
		return err
	}
	defer seal.Wipe(seed)
	_, err = s.bucket.Create(ctx, keys.Curve.Key(), s.idx.seal.sealBytes(keys.Curve.Key(), seed))
	if err != nil && !errors.Is(err, kv.ErrConflict) {
		return fmt.Errorf("store the vault's key: %w", err)
	}
	if err := s.feed.Current(ctx); err != nil {
		return err
	}
	if s.idx.curveKey() == nil {
		return errors.New("start the vault: the key that values are sealed to cannot be opened; was the master key in the data directory replaced?")
	}
	return nil
}

// install carries what Bootstrap left into the bucket. It may be repeated: what is there already stays.
func install(ctx context.Context, b *kv.Bucket, dir string) error {
	sealed, err := bootstrapped(dir)
	if err != nil || sealed == nil {
		return err
	}
	for _, k := range []string{keyCA, tokenKey(pki.Worker), tokenKey(pki.Manager), keys.Unlock.Key()} {
		if sealed[k] == nil {
			continue
		}
		_, err := b.Create(ctx, k, sealed[k])
		if errors.Is(err, kv.ErrConflict) {
			have, gerr := b.Get(ctx, k)
			if gerr != nil {
				return fmt.Errorf("store the new CA: %w", gerr)
			}
			if k == keyCA && !bytes.Equal(have.Value, sealed[k]) {
				return fmt.Errorf("store the new CA: %w; its data directory and %s do not belong together", errForeign, dir)
			}
			err = nil
		}
		if err != nil {
			return fmt.Errorf("store the new CA: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, bootFile)); err != nil {
		return fmt.Errorf("remove the installed CA's file: %w", err)
	}
	return nil
}

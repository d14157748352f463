package backup

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/unlockkey"
	pb "skep.dev/proto/skep/v1"
)

// KeySize is the length of the key that a passphrase makes.
const KeySize = chacha20poly1305.KeySize

// MinPassphrase is the shortest passphrase, in bytes: whoever has the file can try as many as they like.
const MinPassphrase = 8

const (
	saltSize = 16
	// What Argon2id takes for a passphrase (RFC 9106, 4, the second recommended option).
	passes, memoryKiB, lanes = 3, 64 << 10, 4
	// What a file may ask for: somebody else may have written it.
	maxPasses, maxMemoryKiB, maxLanes = 32, 1 << 20, 32
)

// NewPassphrase is how a new file's passphrase becomes its key.
func NewPassphrase() (*pb.BackupPassphrase, error) {
	p := &pb.BackupPassphrase{Salt: make([]byte, saltSize), Time: passes, MemoryKib: memoryKiB, Threads: lanes}
	if _, err := rand.Read(p.Salt); err != nil {
		return nil, fmt.Errorf("make a backup's key: %w", err)
	}
	return p, nil
}

// CheckPassphrase refuses what no key should be made of.
func CheckPassphrase(p *pb.BackupPassphrase) error {
	if len(p.GetSalt()) < saltSize || len(p.Salt) > 64 || p.Time < 1 || p.Time > maxPasses || p.Threads < 1 || p.Threads > maxLanes ||
		p.MemoryKib < 8*p.Threads || p.MemoryKib > maxMemoryKiB {
		return errors.New("how its passphrase becomes a key is nothing this version does")
	}
	return nil
}

// FromPassphrase makes the key of a passphrase; it takes a moment and memory, on purpose.
func FromPassphrase(p *pb.BackupPassphrase, phrase []byte) ([]byte, error) {
	if err := CheckPassphrase(p); err != nil {
		return nil, err
	}
	return argon2.IDKey(phrase, p.Salt, p.Time, p.MemoryKib, uint8(p.Threads), KeySize), nil
}

// Key opens a file's lock.
type Key interface {
	seal(file, beside []byte) ([]byte, error)
	open(lock, beside []byte) ([]byte, error)
}

// Derived is the key that a passphrase makes.
type Derived []byte

func (k Derived) seal(file, beside []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(k)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return aead.Seal(nonce, nonce, file, beside), nil
}

func (k Derived) open(lock, beside []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(k)
	if err != nil {
		return nil, err
	}
	if len(lock) < aead.NonceSize() {
		return nil, ErrKey
	}
	return aead.Open(nil, lock[:aead.NonceSize()], lock[aead.NonceSize():], beside)
}

// Unlock is the cluster's unlock key.
type Unlock struct{ Key unlockkey.Key }

func (k Unlock) seal(file, beside []byte) ([]byte, error) { return k.Key.Seal(file, beside) }
func (k Unlock) open(lock, beside []byte) ([]byte, error) { return k.Key.Open(lock, beside) }

// Opener says which key opens a file, for people.
func Opener(h *pb.BackupHeader) string {
	if u := h.GetUnlockKey(); u != nil {
		return fmt.Sprintf("unlock key %s, made %s", u.Id, day(u.MadeAt))
	}
	if at := h.GetPassphrase().GetSetAt(); at != nil {
		return fmt.Sprintf("the passphrase of scheduled backups that was given on %s", day(at))
	}
	return fmt.Sprintf("the passphrase that was given on %s", day(h.GetMadeAt()))
}

func day(at *timestamppb.Timestamp) string {
	return at.AsTime().UTC().Format(time.DateTime + " MST")
}

package bus

import (
	"context"
	"path/filepath"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// revokedFile is in the data directory: the list as it was last known, for a start without a quorum.
const revokedFile = "revoked.json"

// Users knows which users' certificates were revoked and have not expired yet. Give its Revoked to Config, then Follow the
// store.
type Users struct {
	file roster
	log  *zap.Logger

	mu      sync.RWMutex
	revoked map[string]bool // by serial number
	// unknown: the file cannot be read. Until the store has been looked at every user's certificate may be a revoked one.
	unknown bool
}

// OpenUsers reads the list as it was last known to this manager.
func OpenUsers(dataDir string, log *zap.Logger) *Users {
	u := &Users{file: revokedIn(dataDir), log: log, revoked: map[string]bool{}}
	switch list, err := u.file.read(); {
	case err != nil:
		u.unknown = true
		log.Error("no user is let in before the store has been read: the list of revoked certificates is unreadable", zap.String("path", u.file.path), zap.Error(err))
	case list != nil:
		u.revoked = list
	}
	return u
}

func revokedIn(dataDir string) roster {
	return roster{filepath.Join(dataDir, revokedFile), "revoked certificates", pki.IsSerial}
}

// Follow keeps the list, and ends the connections of those that come on it, until ctx ends or the feed is closed.
func (u *Users) Follow(ctx context.Context, js jetstream.JetStream, b *Bus) *kv.Feed {
	return kv.Follow(ctx, js, subject.Secret, func(d kv.Delta) {
		if u.apply(d) {
			b.SweepUsers()
		}
	}, keys.User.Key("*"))
}

// apply reports whether the list changed.
func (u *Users) apply(d kv.Delta) (changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if d.Reset {
		u.revoked, u.unknown, changed = map[string]bool{}, false, true
	}
	for _, e := range d.Entries {
		serial, _ := keys.User.ID(e.Key)
		var c skepv1.UserCertificate
		err := proto.Unmarshal(e.Value, &c)
		on := u.revoked[serial]
		switch {
		case e.Deleted || err == nil && c.RevokedAt == nil:
			delete(u.revoked, serial)
			changed = changed || on
		default:
			// What cannot be read may say that it is revoked.
			if err != nil {
				u.log.Error("a user's certificate is refused: its record is unreadable", zap.String("key", e.Key), zap.Error(err))
			}
			u.revoked[serial] = true
			changed = changed || !on
		}
	}
	if changed {
		if err := u.file.write(u.revoked); err != nil {
			u.log.Error("the list of revoked certificates is kept in memory alone", zap.Error(err))
		}
	}
	return changed
}

// Revoked is asked by the broker on every connection of a user.
func (u *Users) Revoked(serial string) bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.revoked[serial] || u.unknown
}

// SweepUsers ends the connections whose certificates are revoked now, and reports how many there were.
func (b *Bus) SweepUsers() int {
	cids := b.guests.holding(b.revokedUser)
	for _, cid := range cids {
		b.kick(cid)
	}
	return len(cids)
}

func (b *Bus) revokedUser(serial string) bool {
	return b.cfg.RevokedUser != nil && b.cfg.RevokedUser(serial)
}

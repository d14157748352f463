package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
	"skep.dev/libs/unlockkey"
)

// A vault whose master key is sealed runs all the same and says so to everybody. It serves two verbs of its own, the door
// and the unlocking, at its node's name; and for as long as no vault of the cluster is open it refuses the others, so that
// who asks learns why instead of waiting.

// waiting is a locked vault.
type waiting struct {
	s    *Service
	door *seal.Door

	mu       sync.Mutex // one attempt at a time
	attempts attempts
	done     chan struct{} // closed when the master key is there
}

// awaitUnlock returns true once there is a master key: at once when the disk has it in clear.
func (s *Service) awaitUnlock(ctx context.Context) (open bool, err error) {
	if !s.lock.locked() {
		return true, nil
	}
	door, err := seal.NewDoor(s.cfg.Certificate)
	if err != nil {
		return false, fmt.Errorf("start the locked vault: %w", err)
	}
	defer door.Close()
	if id := door.Public().NodeId; id != s.cfg.NodeID {
		return false, fmt.Errorf("start the locked vault: this node is %s, its certificate is of %s", s.cfg.NodeID, id)
	}
	w := &waiting{s: s, door: door, done: make(chan struct{})}
	srv, err := rpc.NewServer(s.cfg.NC, rpc.Config{Name: "skep-vault-door", Version: s.cfg.Version, Description: "a locked vault: it waits for the unlock key", Log: s.log})
	if err != nil {
		return false, err
	}
	defer srv.Close() //nolint:errcheck // the connection may be gone
	// In a queue group: several vaults of one node are unlocked one after the other.
	err = errors.Join(
		rpc.Handle(srv, api.VaultDoor.At(s.cfg.NodeID).Subject(), w.show),
		rpc.Handle(srv, api.VaultUnlock.At(s.cfg.NodeID).Subject(), w.unlock),
	)
	if err != nil {
		return false, err
	}
	info := s.lock.diskKey()
	s.log.Warn("the vault is locked: no secrets, joins and certificates until somebody runs skep unlock on this manager",
		zap.String("key", info.GetId()), zap.Time("key_made", info.GetMadeAt().AsTime()))
	s.gauge.Set(1)
	defer s.gauge.Set(0)
	s.tellLock(rpc.WithActor(ctx, rpc.Actor{Name: "system"}), "locked", map[string]string{"key": info.GetId()})

	around, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	feeds := kv.FollowAll(around, s.js, kv.Fold{Lock: &sync.Mutex{}, Log: s.log}.Source(subject.Secret, func(e kv.Entry) error {
		if f, _ := keys.Of(subject.Secret, e.Key); f == keys.Unlock || f == keys.ManagerLock {
			return s.lock.picture.take(nil, e)
		}
		return nil
	}, func(kv.Delta) { s.lock.picture.reset() }))
	defer feeds.Close()
	wg.Go(func() { stand{s: s, why: s.refusal, state: s.autolockState}.run(around) })
	wg.Go(func() { w.tell(around, feeds) })
	select {
	case <-ctx.Done():
		return false, nil
	case <-w.done:
	}
	if s.idx.seal, err = s.lock.sealer(); err != nil {
		return false, err
	}
	return true, nil
}

// refusal is what a locked vault answers.
func (s *Service) refusal() error {
	where := s.cfg.Hostname
	if where == "" {
		where = s.cfg.NodeID
	}
	return fault.Locked("the cluster's secrets are locked: run skep unlock on %s", where)
}

// tell writes down that this manager is locked, as soon as the store takes it.
func (w *waiting) tell(ctx context.Context, feeds kv.Feeds) {
	if !feeds.Caught(ctx) {
		return
	}
	for said := false; ; said = true {
		err := w.s.tellRest(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if !said {
			w.s.log.Warn("the store does not take yet that this manager is locked; trying again", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(standEvery):
		}
	}
}

func (w *waiting) show(context.Context, *skepv1.VaultDoorRequest) (*skepv1.VaultDoor, error) {
	d := w.door.Public()
	d.Key = proto.CloneOf(w.s.lock.diskKey())
	return d, nil
}

// unlock tries an unlock key.
func (w *waiting) unlock(ctx context.Context, r *skepv1.UnlockRequest) (*skepv1.UnlockReply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.done:
		return nil, fault.Conflict("swarm is not locked")
	default:
	}
	now := w.s.cfg.Now()
	if left := w.attempts.wait(now); left > 0 {
		return nil, fault.Exhausted("too many wrong unlock keys: no key is looked at for %s; the right one is taken then", left.Round(time.Second))
	}
	text, err := w.door.Open(r)
	if err != nil {
		return nil, fault.Conflict("the unlock key was sealed to this manager as it was before it was started again, or to another one: run skep unlock again")
	}
	k, err := unlockkey.Parse(text)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	record := w.s.lock.picture.now()
	master, used, err := w.s.lock.try(k, record)
	if err != nil {
		w.attempts.failed(now)
		w.s.tellLock(ctx, "unlock-refused", map[string]string{"key": k.ID()})
		if left := w.attempts.wait(now); left > 0 {
			return nil, fault.Denied("%v. That was wrong key number %d: the next one is looked at in %s", err, w.attempts.wrong, left.Round(time.Second))
		}
		return nil, fault.Denied("%v", err)
	}
	if err := w.fits(ctx, master); err != nil {
		clear(master)
		return nil, err
	}
	w.s.lock.opened(master, now)
	w.s.tellLock(ctx, "unlock", map[string]string{"key": used.Id})
	close(w.done)
	out := &skepv1.UnlockReply{Used: used}
	if i := record.Info(); i.GetOn() && i.Id != used.Id && i.Generation > used.Generation {
		out.Current = i
	}
	return out, nil
}

// try opens the master key: that of the disk, or, with the cluster's current unlock key on a manager that was away when
// it was made, the one beside the record. Both are tried whatever comes of the first.
func (l *lock) try(k unlockkey.Key, record *lockRecord) (master []byte, used *skepv1.UnlockKeyInfo, err error) {
	l.mu.Lock()
	s := l.rests.sealed
	l.mu.Unlock()
	fromDisk, derr := s.open(k)
	var box []byte
	var beside []byte
	if record != nil {
		box, beside = record.stored.SealedMaster, besideRecord(record.stored.Info)
	}
	fromRecord, rerr := k.Open(box, beside)
	switch {
	case derr == nil:
		clear(fromRecord)
		return fromDisk, s.info, nil
	case rerr == nil && len(fromRecord) == masterSize:
		return fromRecord, record.info, nil
	}
	return nil, nil, wrongKey(k.ID(), s.info, record.Info())
}

// wrongKey says which key opens this manager, and what is known of the one that was given.
func wrongKey(given string, disk, cluster *skepv1.UnlockKeyInfo) error {
	day := func(at interface{ AsTime() time.Time }) string {
		return at.AsTime().UTC().Format("2006-01-02 15:04:05 MST")
	}
	if given == disk.Id {
		return fmt.Errorf("swarm could not be unlocked: the key is the right one (%s, made %s), but the sealed master key was altered or damaged: restore vault/%s from a backup",
			disk.Id, day(disk.MadeAt), sealedFile)
	}
	text := fmt.Sprintf("swarm could not be unlocked: invalid key provided: this manager opens with unlock key %s, made %s", disk.Id, day(disk.MadeAt))
	if cluster.GetOn() && cluster.Id != disk.Id && cluster.Generation > disk.Generation {
		text += fmt.Sprintf(", or with the cluster's current one, %s, made %s", cluster.Id, day(cluster.MadeAt))
	}
	for _, info := range []*skepv1.UnlockKeyInfo{cluster, disk} {
		for _, f := range info.GetFormer() {
			if f.Id == given {
				return fmt.Errorf("%s; the key given is %s, which was made %s and replaced %s", text, given, day(f.MadeAt), day(f.ReplacedAt))
			}
		}
	}
	return fmt.Errorf("%s; the key given is %s, which is not known here: it may be of another cluster, or newer than this backup", text, given)
}

// fits makes sure that the master key is the one of this cluster's store, before the vault relies on it.
func (w *waiting) fits(ctx context.Context, master []byte) error {
	ours, err := w.s.opensStore(ctx, master)
	switch {
	case err != nil:
		return fault.Unavailable("the unlock key is right, but the store does not answer what it is to open: try again (%v)", err)
	case !ours:
		return fault.Invalid("the unlock key is right, but the cluster's CA in the store was sealed under another master key: vault/ and bus/ of this data directory do not belong together; restore both from one backup")
	}
	return nil
}

// opensStore reports whether a master key opens the cluster's CA in the store; with an error nobody knows.
func (s *Service) opensStore(ctx context.Context, master []byte) (bool, error) {
	seal, err := newSealer(master)
	if err != nil {
		return false, err
	}
	e, err := s.bucket.Get(ctx, keyCA)
	if err != nil {
		return false, err
	}
	ca, err := seal.openBytes(keyCA, bytes.Clone(e.Value))
	clear(ca)
	return err == nil, nil
}

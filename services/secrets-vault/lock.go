package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/unlockkey"
)

// lock is the master key of this vault: in memory once it was read or unlocked, and as it rests on disk.
type lock struct {
	disk    disk
	picture lockPicture

	mu     sync.Mutex // of what follows, and of the directory
	master []byte     // nil while locked
	rests  resting
	since  time.Time // when it was locked or opened
	// missing: the directory has no master key; fetch asks for it.
	missing *noMasterError
}

// readLock reads the vault's directory.
func readLock(dir string, log *zap.Logger, now time.Time) (*lock, error) {
	l := &lock{disk: disk{dir: dir, log: log}, since: now, picture: lockPicture{managers: map[string]*skepv1.ManagerLock{}, changed: make(chan struct{}, 1)}}
	var err error
	if l.rests, err = l.disk.read(); errors.As(err, &l.missing) {
		return l, nil
	} else if err != nil {
		return nil, err
	}
	l.master = bytes.Clone(l.rests.master)
	return l, nil
}

// sealer is nil while locked.
func (l *lock) sealer() (*sealer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.master == nil {
		return nil, nil
	}
	return newSealer(l.master)
}

func (l *lock) locked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.master == nil
}

// opened takes the master key that an unlock key gave.
func (l *lock) opened(master []byte, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.master, l.since = master, now
}

// diskKey says which unlock key seals the disk, nil when the master key stands in clear.
func (l *lock) diskKey() *skepv1.UnlockKeyInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.diskKeyLocked()
}

func (l *lock) diskKeyLocked() *skepv1.UnlockKeyInfo {
	if l.rests.sealed == nil || l.rests.master != nil {
		return nil
	}
	return l.rests.sealed.info
}

// stale: the disk knows of a later key than the record.
func (s *Service) stale(r *lockRecord) bool {
	return s.lock.diskKey().GetGeneration() > r.Info().GetGeneration()
}

// setAutolock turns it on or off. State asks, when somebody updates the cluster; the cluster's spec follows, and decides
// nothing: who can write the store's files could turn it off there.
func (s *Service) setAutolock(ctx context.Context, r *skepv1.SetAutolockRequest) (*skepv1.AutolockState, error) {
	if r.By != "" {
		ctx = rpc.WithActor(ctx, rpc.Actor{Name: r.By, Address: r.ByAddress})
	}
	err := s.changeKey(ctx, func(cur *lockRecord) (change bool, on bool, verb string, err error) {
		verb = "autolock-off"
		if r.On {
			verb = "autolock-on"
		}
		return cur.Info().GetOn() != r.On || s.stale(cur), r.On, verb, nil
	})
	if err != nil {
		return nil, err
	}
	return s.autolockState(ctx, nil)
}

// unlockKey shows the key, after replacing it if asked to, sealed to who asks.
func (s *Service) unlockKey(ctx context.Context, r *skepv1.UnlockKeyRequest) (*skepv1.UnlockKeyReply, error) {
	if r.Reader == "" {
		return nil, fault.Invalid("show the unlock key: name a curve key to seal it to; `skep unlock-key` does")
	}
	if r.Rotate {
		err := s.changeKey(ctx, func(cur *lockRecord) (bool, bool, string, error) {
			if !cur.Info().GetOn() && !s.stale(cur) {
				return false, false, "", fault.Invalid("cannot rotate because autolock is not turned on: skep swarm update --autolock")
			}
			return true, true, "unlock-key-rotate", nil
		})
		if err != nil {
			return nil, err
		}
	} else if err := s.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("show the unlock key: %v", err)
	}
	key, err := s.idx.publicKey()
	if err != nil {
		return nil, err
	}
	out, cur := &skepv1.ShownUnlockKey{}, s.lock.picture.now()
	switch {
	case s.stale(cur):
		return nil, fault.Conflict("this manager was sealed under a later unlock key than the store knows of (was the store restored from a backup?): make a new key: skep unlock-key --rotate")
	case cur.Info().GetOn():
		out.Text, out.Info = cur.key.Text(), cur.info
		if !r.Rotate {
			s.tellLock(ctx, "unlock-key-read", map[string]string{"key": cur.info.Id})
		}
	}
	sealed, err := s.idx.curveKey().To(r.Reader, out)
	if err != nil {
		return nil, fault.Invalid("show the unlock key: %v", err)
	}
	return &skepv1.UnlockKeyReply{Key: key, Sealed: sealed}, nil
}

// changeKey writes the record anew, if decide says so, and brings this manager's disk in line with it. The record comes
// first: a crash between leaves a disk that opens with the old key and follows afterwards.
func (s *Service) changeKey(ctx context.Context, decide func(*lockRecord) (change, on bool, verb string, err error)) error {
	for {
		if err := s.feed.Current(ctx); err != nil {
			return fault.Unavailable("change how managers are unlocked: %v", err)
		}
		cur := s.lock.picture.now()
		change, on, verb, err := decide(cur)
		if err != nil {
			return err
		}
		if change {
			var k unlockkey.Key
			id := ""
			if on {
				if k, err = unlockkey.New(); err != nil {
					return err
				}
				id = k.ID()
			}
			info := next(cur.Info(), s.lock.diskKey(), id, s.cfg.Now())
			err := s.putRecord(ctx, cur, info, k)
			if errors.Is(err, kv.ErrConflict) {
				continue // somebody else changed it just now
			}
			if err != nil {
				return fault.Unavailable("the change may have been made or not: look, then try again (skep info, skep unlock-key): %v", err)
			}
			s.tellLock(ctx, verb, map[string]string{"key": info.Id})
		}
		if err := s.settle(ctx); err != nil {
			return fault.Unavailable("autolock was changed, but the master key on this manager's disk was not yet; it is tried again: %v", err)
		}
		return nil
	}
}

func (s *Service) putRecord(ctx context.Context, cur *lockRecord, info *skepv1.UnlockKeyInfo, k unlockkey.Key) error {
	s.lock.mu.Lock()
	value, err := newRecord(s.idx.seal, s.lock.master, info, k)
	s.lock.mu.Unlock()
	if err != nil {
		return err
	}
	var over uint64
	if cur != nil {
		over = cur.revision
	}
	rev, err := s.bucket.Set(ctx, keys.Unlock.Key(), value, over)
	if err != nil {
		return err
	}
	return s.feed.Wait(ctx, rev)
}

// settle brings this manager's directory in line with the record, and what the bucket says of this manager with that.
func (s *Service) settle(ctx context.Context) error {
	l := s.lock
	l.mu.Lock()
	err := l.settleLocked()
	l.mu.Unlock()
	return errors.Join(err, s.tellRest(ctx))
}

func (l *lock) settleLocked() error {
	// Another process of this node may have done it.
	rests, err := l.disk.read()
	if err != nil {
		return err
	}
	if rests.master != nil && !bytes.Equal(rests.master, l.master) {
		return fmt.Errorf("%s was replaced: it is not the key that this vault runs with; put the right one back, or take the file away if autolock is on", l.disk.path(masterFile))
	}
	l.rests = rests
	r := l.picture.now()
	var steps []func() error
	switch plan(rests, r.Info()) {
	case doSeal:
		steps = append(steps, func() error { return l.disk.writeSealed(r.key, r.info, l.master) }, l.disk.dropClear)
	case doDropClear:
		// What is there must open before the other goes.
		steps = append(steps, func() error {
			got, err := rests.sealed.open(r.key)
			defer clear(got)
			if err != nil || !bytes.Equal(got, l.master) {
				return l.disk.writeSealed(r.key, r.info, l.master)
			}
			return nil
		}, l.disk.dropClear)
	case doUnseal:
		steps = append(steps, func() error { return l.disk.writeClear(l.master) }, l.disk.dropSealed)
	case doDropSealed:
		steps = append(steps, l.disk.dropSealed)
	default:
		return nil
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if l.rests, err = l.disk.read(); err != nil {
		return err
	}
	l.disk.log.Info("the master key on disk follows the cluster", zap.Bool("sealed", l.diskKeyLocked() != nil), zap.String("key", l.diskKeyLocked().GetId()))
	return nil
}

// rest is how this manager's master key rests.
func (s *Service) rest() *skepv1.ManagerLock {
	l := s.lock
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &skepv1.ManagerLock{NodeId: s.cfg.NodeID, Hostname: s.cfg.Hostname, Locked: l.master == nil, Since: timestamppb.New(l.since), Key: proto.CloneOf(l.diskKeyLocked())}
	if m.Key != nil {
		m.Key.Former = nil
	}
	return m
}

// tellRest writes down how this manager's master key rests, if that has changed.
func (s *Service) tellRest(ctx context.Context) error {
	l, m := s.lock, s.rest()
	l.picture.mu.Lock()
	have := l.picture.managers[s.cfg.NodeID]
	l.picture.mu.Unlock()
	if s.cfg.NodeID == "" || proto.Equal(have, m) {
		return nil
	}
	value, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := s.bucket.Put(ctx, keys.ManagerLock.Key(s.cfg.NodeID), value); err != nil {
		return fmt.Errorf("write down how this manager's master key rests: %w", err)
	}
	return nil
}

const settleEvery = 15 * time.Second

// tendLock keeps this manager's disk in line with the cluster's record until ctx ends: also after a rotation that another
// manager carried out, or that was made while this one was away.
func (s *Service) tendLock(ctx context.Context) {
	t := time.NewTicker(settleEvery)
	defer t.Stop()
	said := ""
	for {
		err := s.settle(ctx)
		text := ""
		if err != nil {
			text = err.Error()
		} else if cur := s.lock.picture.now(); s.stale(cur) {
			text = "it is sealed under a later unlock key than the store knows of: make a new one with skep unlock-key --rotate"
		}
		if text != "" && text != said && ctx.Err() == nil {
			s.log.Error("the master key on this manager's disk is not as the cluster has it", zap.String("why", text))
		}
		said = text
		select {
		case <-ctx.Done():
			return
		case <-s.lock.picture.changed:
		case <-t.C:
			s.dropLocks(ctx)
		}
	}
}

// dropLocks removes what managers wrote down of their locks that are managers no more. Should one have become a manager again
// just now, it writes its own anew.
func (s *Service) dropLocks(ctx context.Context) {
	others := s.lock.picture.others(s.cfg.NodeID)
	if len(others) == 0 {
		return
	}
	set, err := s.group.read(ctx)
	if err != nil || set == nil {
		return
	}
	for _, node := range others {
		if slices.ContainsFunc(set.Managers, func(m *skepv1.Manager) bool { return m.NodeId == node }) {
			continue
		}
		n, err := askState(ctx, s, api.NodeInspect, &skepv1.Ref{Ref: node})
		gone := fault.Is(err, fault.CodeNotFound) || err == nil && (n.GetNode().GetMeta().GetId() != node || n.Node.Role != skepv1.NodeRole_NODE_ROLE_MANAGER)
		if !gone {
			continue
		}
		if err := s.bucket.Delete(ctx, keys.ManagerLock.Key(node), 0); err != nil && ctx.Err() == nil {
			s.log.Warn("how the key of a former manager rested stays written down for now", zap.String("node", node), zap.Error(err))
		}
	}
}

// autolockState is what anybody may know.
func (s *Service) autolockState(ctx context.Context, _ *skepv1.Empty) (*skepv1.AutolockState, error) {
	if s.feed != nil {
		if err := s.feed.Current(ctx); err != nil {
			return nil, fault.Unavailable("look how managers are locked: %v", err)
		}
	}
	// Of itself a vault knows better than the store, which may have what was before it was started again.
	return s.lock.picture.state(s.rest()), nil
}

// handleLock serves what an open vault answers about its lock.
func (s *Service) handleLock(srv *rpc.Server) error {
	return errors.Join(
		api.Handle(srv, api.AutolockGet, s.autolockState),
		api.Handle(srv, api.AutolockSet, s.setAutolock),
		api.Handle(srv, api.AutolockKey, s.unlockKey),
		api.Handle(srv, api.VaultOpen, func(context.Context, *skepv1.Empty) (*skepv1.Empty, error) { return &skepv1.Empty{}, nil }),
	)
}

// clusterID is known to a locked vault as well.
func (s *Service) clusterID() string {
	if ca := s.idx.authority(); ca != nil {
		return ca.ClusterID()
	}
	if s.cfg.Certificate != nil {
		if id, err := pki.FromCertificate(s.cfg.Certificate.Certificate().Leaf); err == nil {
			return id.ClusterID
		}
	}
	return ""
}

// tellLock publishes an event about the lock: of the cluster, and with the manager it happened on.
func (s *Service) tellLock(ctx context.Context, verb string, attr map[string]string) {
	attr["node"], attr["hostname"] = s.cfg.NodeID, s.cfg.Hostname
	s.log.Info(verb, zap.String("by", rpc.Asker(ctx)), zap.String("key", attr["key"]))
	if id := s.clusterID(); id != "" {
		s.publish(ctx, &skepv1.Event{Kind: "cluster", Id: id, Name: "default", Verb: verb, Attributes: attr})
	}
}

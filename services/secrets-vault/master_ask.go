package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
)

const (
	askMasterFirst = 200 * time.Millisecond // the pause after the first attempt
	askMasterLast  = 10 * time.Second       // and the longest
	askMasterFor   = 5 * time.Second        // one attempt
)

// fetch sees to a master key where the directory has none: this manager is new, or lost its disk, and another gives it. It
// returns true once there is one, at once when there was. A manager that is alone has nobody to ask: then its directory has to
// be restored, as fetch's error says.
func (s *Service) fetch(ctx context.Context) (bool, error) {
	if s.lock.missing == nil {
		return true, nil
	}
	id, err := pki.FromCertificate(s.cfg.Certificate.Certificate().Leaf)
	if err != nil {
		return false, fmt.Errorf("ask for the master key: %w", err)
	}
	if id.NodeID != s.cfg.NodeID {
		return false, fmt.Errorf("ask for the master key: this node is %s, its certificate is of %s", s.cfg.NodeID, id.NodeID)
	}
	around, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { stand{s: s, why: s.keyless}.run(around) })
	said := ""
	for pause := askMasterFirst; ; pause = min(2*pause, askMasterLast) {
		err := s.fetchOnce(ctx)
		var final *finalError
		switch {
		case err == nil:
			s.log.Info("this manager has the master key", zap.Bool("autolock", s.lock.diskKey() != nil))
			return true, nil
		case ctx.Err() != nil:
			return false, nil
		case errors.As(err, &final):
			return false, final.error
		case err.Error() != said:
			said = err.Error()
			s.log.Warn("this manager has no master key yet and asks the others for it", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(pause):
		}
	}
}

// keyless is what a vault without a master key answers while no other is open.
func (s *Service) keyless() error {
	return fault.Unavailable("the vault of manager %s has no master key yet, and no other manager's vault is open to give it: start the other managers, and unlock them where autolock is on (skep unlock)", s.cfg.Hostname)
}

// finalError: trying again cannot help.
type finalError struct{ error }

// fetchOnce asks once, and stores what comes.
func (s *Service) fetchOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askMasterFor)
	defer cancel()
	set, err := s.group.read(ctx)
	if err != nil {
		return fmt.Errorf("look who the other managers are: %w", err)
	}
	if !slices.ContainsFunc(set.GetManagers(), func(m *skepv1.Manager) bool { return m.NodeId != s.cfg.NodeID }) {
		return &finalError{s.lock.missing}
	}
	ask, err := seal.AskMaster(s.cfg.Certificate, s.cfg.Now())
	if err != nil {
		return err
	}
	defer ask.Close()
	reply, err := api.Call(ctx, s.cfg.NC, api.VaultMaster.At(s.cfg.NodeID), ask.Request)
	if err != nil {
		return err
	}
	given, err := ask.Open(s.cfg.Certificate.Roots(), reply)
	if errors.Is(err, seal.ErrCluster) {
		return &finalError{fmt.Errorf("ask for the master key: %w: this manager's data directory is of another cluster than its broker; skep leave --force, then join again", err)}
	}
	if err != nil {
		return fmt.Errorf("open the answer: %w", err)
	}
	defer seal.Wipe(given.Master)
	if len(given.Master) != masterSize {
		return fmt.Errorf("the answer holds a key of %d bytes: it has %d", len(given.Master), masterSize)
	}
	ours, err := s.opensStore(ctx, given.Master)
	switch {
	case err != nil:
		return fmt.Errorf("look what the master key is to open: %w", err)
	case !ours:
		return &finalError{errors.New("ask for the master key: the cluster's CA in the store was sealed under another key than the other managers have: this manager's broker is of another cluster, or the store was replaced")}
	}
	return s.take(ctx, given)
}

// take stores a master key as the cluster's record has it rest: with autolock it is on no disk in clear, and this vault is
// open until it is started again.
func (s *Service) take(ctx context.Context, given *skepv1.MasterKey) error {
	sealer, err := newSealer(given.Master)
	if err != nil {
		return err
	}
	p := lockPicture{managers: map[string]*skepv1.ManagerLock{}, changed: make(chan struct{}, 1)}
	e, err := s.bucket.Get(ctx, keys.Unlock.Key())
	if err == nil {
		err = p.take(sealer, e)
	}
	if err != nil && !errors.Is(err, kv.ErrNotFound) {
		return fmt.Errorf("look how the master key is to rest: %w", err)
	}
	record := p.now()
	// Who gave the key knows the record, too. One that is older here was put back, to have the key in clear.
	if record.Info().GetGeneration() < given.Unlock.GetGeneration() {
		return fmt.Errorf("the store has an older record of autolock than the vault that gave the master key: the key is not stored")
	}
	l := s.lock
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.MkdirAll(l.disk.dir, 0o700); err != nil {
		return fmt.Errorf("store the master key: %w", err)
	}
	if record.Info().GetOn() {
		err = l.disk.writeSealed(record.key, record.info, given.Master)
	} else {
		err = l.disk.writeClear(given.Master)
	}
	if err != nil {
		return err
	}
	if l.rests, err = l.disk.read(); err != nil {
		return err
	}
	l.master, l.since, l.missing = bytes.Clone(given.Master), s.cfg.Now(), nil
	s.idx.seal = sealer
	return nil
}

// copy is the master key, for who is given it.
func (l *lock) copy() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.master)
}

package engine

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/unlockkey"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/wire"
)

// besideWithin is how long is waited for what an answer can do without.
const besideWithin = 500 * time.Millisecond

// locked reports whether this manager waits for the unlock key.
func (s *Service) locked(ctx context.Context, node string) bool {
	ctx, cancel := context.WithTimeout(ctx, besideWithin)
	defer cancel()
	state, err := call(ctx, s.cluster, api.AutolockGet, &skepv1.Empty{})
	if err != nil {
		return false // who asks for what is locked is told so
	}
	for _, m := range state.Managers {
		if m.NodeId == node {
			return m.Locked
		}
	}
	return false
}

// unlockKey shows the key that unlocks managers: it travels sealed to this process. Without autolock Docker answers an empty one.
func (s *Service) unlockKey(w http.ResponseWriter, r *wire.Request) error {
	shown, err := s.shownKey(r.Context(), false)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, swarm.UnlockKeyResponse{UnlockKey: shown.Text})
}

func (s *Service) shownKey(ctx context.Context, rotate bool) (*skepv1.ShownUnlockKey, error) {
	ca, err := s.root() // what the answer is read with must be there before anything changes
	if err != nil {
		return nil, err
	}
	reader, err := seal.NewReader()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	reply, err := call(ctx, s.cluster, api.AutolockKey, &skepv1.UnlockKeyRequest{Rotate: rotate, Reader: reader.Key()})
	if err != nil {
		return nil, err
	}
	shown := &skepv1.ShownUnlockKey{}
	return shown, reader.Open(ca, reply.Key, reply.Sealed, shown)
}

// unlockWithin is how long the vaults of this manager may take.
const unlockWithin = 15 * time.Second

// unlock opens this node's manager: all its vaults, should it run several. The key leaves this process sealed to it.
func (s *Service) unlock(w http.ResponseWriter, r *wire.Request) error {
	var in swarm.UnlockRequest
	if _, err := r.ReadJSON(&in); err != nil {
		return err
	}
	rec, err := member.Load(s.cfg.Paths)
	if err != nil {
		return wire.Unavailable("%s", sayNone)
	}
	ctx, cancel := context.WithTimeout(r.Context(), unlockWithin)
	defer cancel()
	if _, err := s.cluster.conn(); err != nil {
		return err
	}
	if !s.locked(ctx, rec.NodeID) {
		return wire.Errorf(http.StatusConflict, "swarm is not locked")
	}
	key, err := unlockkey.Parse(in.UnlockKey)
	if err != nil {
		return wire.Errorf(http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided")
	}
	ca, err := s.root()
	if err != nil {
		return err
	}
	for opened := false; ; {
		door, err := call(ctx, s.cluster, api.VaultDoor.At(rec.NodeID), &skepv1.VaultDoorRequest{})
		if errors.Is(err, rpc.ErrNobody) && opened {
			return wire.None(w, http.StatusOK)
		}
		if err != nil {
			return err
		}
		req, err := seal.ToDoor(ca, door, rec.NodeID, key.Text())
		if err != nil {
			return err
		}
		_, err = call(ctx, s.cluster, api.VaultUnlock.At(rec.NodeID), req)
		switch {
		case err == nil, fault.Is(err, fault.CodeConflict), errors.Is(err, rpc.ErrNobody): // it opened between the two questions, or it is another vault's door
			opened = true
		case fault.Is(err, fault.CodeDenied), fault.Is(err, fault.CodeInvalid):
			return wire.Errorf(http.StatusUnauthorized, "%v", err)
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(againEvery):
		}
	}
}

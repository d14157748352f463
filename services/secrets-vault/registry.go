package vault

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
)

// Credentials of image registries belong to services: nobody lists, names or removes them. They are made before the
// service that refers to them by id, and go when no service and no kept revision does. What is known of them without
// opening the value is the registry's host.

const registryKind = skepv1.SecretKind_SECRET_KIND_REGISTRY

var errNoCredentials = fault.Invalid("the credentials of its registry are not kept any more: give them again with skep service update --with-registry-auth")

// createRegistry keeps credentials. The same ones get the same id again: who gives them with every update changes no
// service and fills no vault.
func (s *Service) createRegistry(ctx context.Context, r *skepv1.CreateSecretRequest) (*skepv1.SecretReply, error) {
	k := kind{s, registryKind}
	if err := spec.CheckSecret(registryKind, r.Spec); err != nil {
		return nil, err
	}
	value, err := k.openSealed(r.Sealed, r.Spec.Name, 1)
	if err != nil {
		return nil, err
	}
	defer seal.Wipe(value)
	if err := checkCredentials(r.Spec.Name, value); err != nil {
		return nil, err
	}
	o, err := s.idx.registryID(r.Spec.Name, value)
	if err != nil {
		return nil, err
	}
	for {
		have, err := s.renewRegistry(ctx, o)
		switch {
		case err == nil:
			return &skepv1.SecretReply{Secret: have.view()}, nil
		case fault.Is(err, fault.CodeDenied):
			o = id.New() // the store was altered there: what is under that id is never served
		case !fault.Is(err, fault.CodeNotFound):
			return nil, err
		default:
			if bad, err := s.unreadable(ctx, o); err != nil {
				return nil, err
			} else if bad {
				o = id.New() // likewise
			}
		}
		reply, err := k.store(ctx, o, r.Spec, value)
		if !fault.Is(err, fault.CodeConflict) {
			return reply, err
		}
		// Somebody else has stored them meanwhile.
	}
}

// unreadable reports whether the store has something under an object's key that is not what a vault wrote there.
func (s *Service) unreadable(ctx context.Context, o string) (bool, error) {
	e, err := s.bucket.Get(ctx, keys.Object.Key(o))
	if errors.Is(err, kv.ErrNotFound) {
		return false, nil
	}
	if err == nil {
		err = s.feed.Wait(ctx, e.Revision)
	}
	if err != nil {
		return false, fault.Unavailable("look for registry credentials: %v", err)
	}
	s.idx.mu.Lock()
	defer s.idx.mu.Unlock()
	return s.idx.objects.byID[o] == nil, nil
}

// checkCredentials: what the node could not use is refused while somebody is there to see it.
func checkCredentials(host string, value []byte) error {
	var c struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
	}
	if json.Unmarshal(value, &c) != nil { // whose error could quote them
		return fault.Invalid("registry %s: its credentials are not what a client of this version sends", host)
	}
	if c.IdentityToken == "" && (c.Username == "" || c.Password == "") {
		return fault.Invalid("registry %s: its credentials have neither a user with a password nor an identity token", host)
	}
	return nil
}

// registryID is where credentials are kept. Without the vault's key nobody can try passwords against it.
func (x *index) registryID(host string, value []byte) (string, error) {
	seed, err := x.curveKey().Seed()
	if err != nil {
		return "", err
	}
	defer seal.Wipe(seed)
	h := hmac.New(sha256.New, seed)
	h.Write([]byte("registry\x00" + host + "\x00"))
	h.Write(value)
	sum := h.Sum(nil)[:17]
	sum[0] |= 0x80 // never short
	text := new(big.Int).SetBytes(sum).Text(36)
	return text[len(text)-id.Len:], nil
}

const (
	// registryGrace is how long credentials are kept for a service that is about to be made.
	registryGrace = 10 * time.Minute
	// registryRenewed is how old the note of their last use may become before it is written again.
	registryRenewed = time.Minute
)

// renewRegistry notes that somebody is about to refer to credentials.
func (s *Service) renewRegistry(ctx context.Context, o string) (*object, error) {
	now := s.cfg.Now()
	var fresh *object
	done, err := s.change(ctx, o, func(cur *object) (*skepv1.SecretRecord, error) {
		if cur == nil {
			return nil, fault.NotFound("no such credentials")
		}
		if cur.RemovedAt == nil && now.Sub(cur.Secret.Meta.UpdatedAt.AsTime()) < registryRenewed {
			fresh = cur
			return nil, fault.Conflict("nothing to write")
		}
		next := proto.CloneOf(cur.SecretRecord)
		next.Secret.Meta.UpdatedAt, next.RemovedAt, next.RemovedBy = timestamppb.New(now), nil, ""
		return next, nil
	})
	if fresh != nil {
		return fresh, nil
	}
	return done, err
}

const (
	// dropEvery is how often credentials that nobody refers to are looked for, and dropBatch how many are asked about then.
	dropEvery = time.Minute
	dropBatch = 50
)

// dropRegistries removes credentials that no service and no kept revision refers to, some at a time. They are kept for a
// while after that, like everything that is removed (settleRemoved).
func (s *Service) dropRegistries(ctx context.Context) {
	now := s.cfg.Now()
	if now.Sub(s.dropped) < dropEvery {
		return
	}
	s.dropped = now
	due := s.idx.oldRegistries(now.Add(-registryGrace), s.dropAfter)
	s.dropAfter = ""
	if len(due) > dropBatch {
		due = due[:dropBatch]
		s.dropAfter = due[dropBatch-1]
	}
	if len(due) == 0 {
		return
	}
	uses, err := s.uses(ctx, true, due...)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("registry credentials that nobody uses are still kept; trying again", zap.Error(err))
		}
		return
	}
	for _, o := range due {
		if len(uses[o].GetUses()) > 0 {
			continue
		}
		if err := s.dropRegistry(ctx, o, now); err != nil && ctx.Err() == nil {
			s.log.Warn("registry credentials that nobody uses are still kept; trying again", zap.String("id", o), zap.Error(err))
		}
	}
}

// oldRegistries are the credentials that nobody renewed since before, by id, behind an id.
func (x *index) oldRegistries(before time.Time, after string) (out []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for o, r := range x.objects.byID {
		if o > after && r.Secret.Kind == registryKind && r.RemovedAt == nil && r.Secret.Meta.UpdatedAt.AsTime().Before(before) && x.objects.genuine(r) {
			out = append(out, o)
		}
	}
	slices.Sort(out)
	return out
}

func (s *Service) dropRegistry(ctx context.Context, o string, now time.Time) error {
	done, err := s.change(ctx, o, func(cur *object) (*skepv1.SecretRecord, error) {
		if cur == nil || cur.RemovedAt != nil || now.Sub(cur.Secret.Meta.UpdatedAt.AsTime()) < registryGrace {
			return nil, errSeenTo
		}
		next := proto.CloneOf(cur.SecretRecord)
		next.RemovedAt = timestamppb.New(now)
		return next, nil
	})
	if err == errSeenTo {
		return nil
	}
	if err != nil {
		return err
	}
	s.log.Info("registry credentials removed: no service refers to them", zap.String("id", o), zap.String("name", done.name()))
	s.publish(ctx, &skepv1.Event{Kind: done.word(), Id: o, Name: done.name(), Verb: "remove", Actor: "secrets-vault", Attributes: map[string]string{"name": done.name()}})
	return nil
}

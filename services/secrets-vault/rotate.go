package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
)

// maxOwnRoot bounds the certificate and the key of a root of one's own.
const maxOwnRoot = 16 << 10

// inspectCA shows the root and how far a rotation is.
func (s *Service) inspectCA(ctx context.Context, _ *skepv1.Empty) (*skepv1.CAReply, error) {
	if err := s.feed.Current(ctx); err != nil {
		return nil, err
	}
	return s.idx.caReply(s.cfg.Now()), nil
}

// rotateCA begins a rotation, or has one end without those that are away. It returns at once: the driver does the rest.
func (s *Service) rotateCA(ctx context.Context, r *skepv1.RotateCARequest) (*skepv1.CAReply, error) {
	if (len(r.CertPem) > 0) != (len(r.SealedKey) > 0) {
		return nil, fault.Invalid("rotate the CA: a root of your own is a certificate and its key: give both, or neither")
	}
	if len(r.CertPem) > maxOwnRoot || len(r.SealedKey) > maxOwnRoot {
		return nil, fault.Invalid("rotate the CA: the certificate or the key is too long to be one")
	}
	for {
		if err := s.feed.Current(ctx); err != nil {
			return nil, err
		}
		a := s.idx.authorities()
		next, verb, err := s.rotated(ctx, a, r)
		if err != nil {
			return nil, err
		}
		if verb != "" {
			err = s.storeCA(ctx, a, next, verb)
		}
		if errors.Is(err, kv.ErrConflict) && ctx.Err() == nil {
			continue // it went on meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("rotate the CA: %w", err)
		}
		return s.idx.caReply(s.cfg.Now()), nil
	}
}

// rotated is the record after a request, and the word for it; "" when there is nothing to change.
func (s *Service) rotated(ctx context.Context, a *authorities, r *skepv1.RotateCARequest) (next caRecord, verb string, err error) {
	now := s.cfg.Now()
	if t := a.Rotation; t != nil {
		switch {
		case r.ForceFinish && !t.Force:
			next, force := a.caRecord, *t
			force.Force = true
			next.Rotation = &force
			return next, "force-finish", nil
		case len(r.CertPem) > 0:
			return next, "", fault.Conflict("rotate the CA: a rotation to another root began on %s and goes on by itself; wait for its end (skep ca shows how far it is), or end it without those that are away: skep ca --rotate --force-finish",
				t.Began.UTC().Format(time.RFC3339))
		}
		return next, "", nil // asked twice
	}
	if r.ForceFinish {
		return next, "", fault.Invalid("finish the rotation of the CA: there is none under way")
	}
	root, err := s.nextRoot(a, r)
	if err != nil {
		return next, "", err
	}
	key, err := root.KeyPEM()
	if err != nil {
		return next, "", err
	}
	link, err := a.current.CrossSign(root.Cert)
	if err != nil {
		return next, "", err
	}
	next = a.caRecord
	next.Rotation = &rotation{
		Phase: skepv1.CAPhase_CA_PHASE_TRUST, Began: now, Since: now, By: rpc.Asker(ctx),
		Cert: string(root.CertPEM()), Key: string(key), Cross: string(pki.EncodeCertificates(link)),
	}
	return next, "trust", nil
}

// nextRoot is a new root, or the one of the request.
func (s *Service) nextRoot(a *authorities, r *skepv1.RotateCARequest) (*pki.CA, error) {
	if len(r.CertPem) == 0 {
		return pki.NewCA(a.current.ClusterID())
	}
	key, err := s.idx.curveKey().FromClient(r.SealedKey, skepv1.SecretKind_SECRET_KIND_UNSPECIFIED, seal.CAKey, 0)
	if err != nil {
		return nil, fault.Invalid("rotate the CA: the key: %v", err)
	}
	defer seal.Wipe(key)
	root, err := pki.ParseOwnCA(r.CertPem, key, a.current.ClusterID())
	if err != nil {
		return nil, fault.Invalid("rotate the CA: %v", err)
	}
	if pki.SameKey(root.Cert, a.current.Cert) {
		return nil, fault.Invalid("rotate the CA: that is the key of the root in use; a rotation is to another one")
	}
	return root, nil
}

// storeCA replaces the record, waits until it is in our index and tells what changed.
func (s *Service) storeCA(ctx context.Context, a *authorities, next caRecord, verb string) error {
	sealed, err := s.idx.seal.seal(keyCA, next)
	if err != nil {
		return err
	}
	rev, err := s.bucket.Update(ctx, keyCA, sealed, a.revision)
	if err != nil {
		return err
	}
	if err := s.feed.Wait(ctx, rev); err != nil {
		return err
	}
	now := s.idx.authorities()
	attrs := map[string]string{"phase": verb, "root": pki.Digest(now.token())}
	if now.next != nil {
		attrs["next"] = pki.Digest(now.next.Cert)
	}
	s.log.Info("root rotation", zap.String("phase", verb), zap.String("by", rpc.Asker(ctx)))
	s.publish(ctx, &skepv1.Event{Kind: "cluster", Id: now.current.ClusterID(), Name: "default", Verb: "ca-rotate", Attributes: attrs})
	return nil
}

// authority signs new certificates. It is nil until the record is read: a locked vault has none.
func (x *index) authority() *pki.CA {
	if a := x.authorities(); a != nil {
		return a.signs
	}
	return nil
}

// authorities are the roots as the record has them.
func (x *index) authorities() *authorities {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.auth
}

func (x *index) caReply(now time.Time) *skepv1.CAReply {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.auth.reply(x.progress, now)
}

// caLocked takes in the record of the roots.
func (x *index) caLocked(e kv.Entry) error {
	if e.Deleted {
		return nil
	}
	var r caRecord
	if err := x.seal.open(e.Key, e.Value, &r); err != nil {
		return err
	}
	a, err := r.read(e.Revision)
	if err != nil {
		return err
	}
	x.auth, x.public = a, nil
	select {
	case x.turned <- struct{}{}:
	default:
	}
	return nil
}

// progressLocked takes in what the driver saw.
func (x *index) progressLocked(e kv.Entry) error {
	x.progress, x.progressRev = nil, e.Revision
	m, err := keys.Rotation.Decode(e.Value)
	if p, ok := m.(*skepv1.CAProgress); ok && !e.Deleted {
		x.progress = p
	}
	return err
}

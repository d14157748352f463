package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
)

const (
	// maxUserCertificates bounds the records, of certificates that have not expired. Every broker holds the revoked ones.
	maxUserCertificates = 10_000
	// keptAfterExpiry is longer than the clocks of managers and the certificate's differ, so that no broker forgets a revoked
	// certificate it would still take.
	keptAfterExpiry = 2 * time.Hour
	pruneEvery      = time.Hour
)

// user is a record of bucket secret, not sealed: the brokers read it, and it is no secret.
type user struct {
	*skepv1.UserCertificate
	revision uint64
}

// userLocked takes in an entry of the bucket.
func (x *index) userLocked(serial string, e kv.Entry) error {
	if e.Deleted {
		delete(x.users, serial)
		return nil
	}
	c := &skepv1.UserCertificate{}
	if err := proto.Unmarshal(e.Value, c); err != nil {
		return err
	}
	x.users[serial] = user{c, e.Revision}
	return nil
}

// certificates are the records that fit, by name, then by age.
func (x *index) certificates(fits func(*skepv1.UserCertificate) bool) (out []user) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, u := range x.users {
		if fits(u.UserCertificate) {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(a, b user) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.IssuedAt.AsTime().Compare(b.IssuedAt.AsTime()), cmp.Compare(a.Serial, b.Serial))
	})
	return out
}

func all(*skepv1.UserCertificate) bool { return true }

// record stores a new certificate before it is given out, so that none exists that nobody can revoke.
func (s *Service) record(ctx context.Context, c *skepv1.UserCertificate) error {
	if n := len(s.idx.certificates(all)); n >= maxUserCertificates {
		return fault.Exhausted("user %s: %d certificates are recorded, the most there may be; they go when they expire", c.Name, n)
	}
	rev, err := s.write(ctx, c, 0)
	if err != nil {
		return fmt.Errorf("record the certificate of user %s: %w", c.Name, err)
	}
	return s.feed.Wait(ctx, rev)
}

// firstOf refuses a user who has a certificate that is good and, with a serial number given, was recorded before that one.
func (s *Service) firstOf(ctx context.Context, name, serial string) error {
	if err := s.feed.Current(ctx); err != nil {
		return fault.Unavailable("look for user %s: %v", name, err)
	}
	now := s.cfg.Now()
	good := s.idx.certificates(func(c *skepv1.UserCertificate) bool {
		return c.Name == name && c.RevokedAt == nil && c.NotAfter.AsTime().After(now)
	})
	if i := slices.IndexFunc(good, func(u user) bool { return u.Serial == serial }); i >= 0 {
		this := good[i].revision
		good = slices.DeleteFunc(good, func(u user) bool { return u.revision >= this })
	}
	if len(good) == 0 {
		return nil
	}
	return fault.Conflict("user %s already exists: its certificate %s (%s) is good until %s; end it with skep user rm %s, or make another beside it with --renew",
		name, good[0].Serial, good[0].Role, good[0].NotAfter.AsTime().UTC().Format(time.RFC3339), name)
}

// unrecord takes back the record of a certificate that was not given out.
func (s *Service) unrecord(ctx context.Context, c *skepv1.UserCertificate) {
	if err := s.bucket.Delete(ctx, keys.User.Key(c.Serial), 0); err != nil {
		s.log.Warn("a certificate that nobody has stays recorded until it expires", zap.String("user", c.Name), zap.String("serial", c.Serial), zap.Error(err))
	}
}

// write stores a record: a new one, or in the place of the revision.
func (s *Service) write(ctx context.Context, c *skepv1.UserCertificate, over uint64) (uint64, error) {
	body, err := proto.Marshal(c)
	if err != nil {
		return 0, err
	}
	return s.bucket.Set(ctx, keys.User.Key(c.Serial), body, over)
}

// issuedUsers lists what is recorded: certificates that have not expired, good and revoked ones.
func (s *Service) issuedUsers(ctx context.Context, _ *skepv1.Empty) (*skepv1.IssuedUsersReply, error) {
	if err := s.feed.Current(ctx); err != nil {
		return nil, err
	}
	var r skepv1.IssuedUsersReply
	now := s.cfg.Now()
	for _, u := range s.idx.certificates(all) {
		if u.NotAfter.AsTime().After(now) {
			r.Certificates = append(r.Certificates, u.UserCertificate)
		}
	}
	return &r, nil
}

// revokeUser revokes a certificate by its serial number, or all of a name. The brokers follow the records: they refuse the
// certificate and end its connections when they have seen this one.
func (s *Service) revokeUser(ctx context.Context, r *skepv1.RevokeUserRequest) (*skepv1.RevokeUserReply, error) {
	ref := strings.ToLower(r.Ref)
	if !userName.MatchString(ref) {
		return nil, fault.Invalid("revoke %q: neither a user's name nor a serial number", printable(r.Ref))
	}
	for {
		reply, err := s.revoke(ctx, ref)
		if !errors.Is(err, kv.ErrConflict) || ctx.Err() != nil {
			return reply, err
		}
		// Somebody else revoked one of them just now, or it was forgotten.
	}
}

func (s *Service) revoke(ctx context.Context, ref string) (*skepv1.RevokeUserReply, error) {
	// Another manager may have issued one a moment ago.
	if err := s.feed.Current(ctx); err != nil {
		return nil, err
	}
	now, by := s.cfg.Now(), rpc.ActorOf(ctx)
	found := s.idx.certificates(func(c *skepv1.UserCertificate) bool {
		return c.Serial == ref || c.Name == ref && c.NotAfter.AsTime().After(now)
	})
	if len(found) == 0 && pki.IsSerial(ref) {
		// Issued before there were records. When it ends is not known.
		if len(s.idx.certificates(all)) >= maxUserCertificates {
			return nil, fault.Exhausted("revoke %s: %d certificates are recorded, the most there may be; they go when they expire", ref, maxUserCertificates)
		}
		found = []user{{&skepv1.UserCertificate{Serial: ref, NotAfter: timestamppb.New(now.Add(maxUserExpiry))}, 0}}
	}
	if len(found) == 0 {
		return nil, fault.NotFound("revoke %s: no certificate of that name is recorded; skep user ls lists them. One from before there were records is revoked by its serial number: skep context inspect shows it", ref)
	}
	var reply skepv1.RevokeUserReply
	for _, u := range found {
		if u.RevokedAt != nil {
			continue
		}
		c := proto.CloneOf(u.UserCertificate)
		c.RevokedAt, c.RevokedBy, c.RevokedFrom = timestamppb.New(now), by.Name, by.Address
		rev, err := s.write(ctx, c, u.revision)
		if err == nil {
			err = s.feed.Wait(ctx, rev)
		}
		if err != nil {
			return nil, fmt.Errorf("revoke certificate %s of user %s: %w", c.Serial, c.Name, err)
		}
		s.log.Info("user's certificate revoked", zap.String("user", c.Name), zap.String("serial", c.Serial), zap.String("by", by.Name), zap.String("from", by.Address))
		s.tell(ctx, "revoke", c)
		reply.Revoked = append(reply.Revoked, c)
	}
	return &reply, nil
}

// tell publishes an event of a user's certificate.
func (s *Service) tell(ctx context.Context, verb string, c *skepv1.UserCertificate) {
	s.publish(ctx, &skepv1.Event{Kind: "user", Id: c.Serial, Name: c.Name, Verb: verb, Attributes: map[string]string{
		"role": c.Role, "expires": c.NotAfter.AsTime().UTC().Format(time.RFC3339),
	}})
}

// pruneUsers forgets expired certificates until ctx ends. Every instance does it: who comes second finds nothing.
func (s *Service) pruneUsers(ctx context.Context) {
	t := time.NewTicker(pruneEvery)
	defer t.Stop()
	for {
		if err := s.prune(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("expired certificates are still recorded; trying again in an hour", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (s *Service) prune(ctx context.Context) error {
	end := s.cfg.Now().Add(-keptAfterExpiry)
	for _, u := range s.idx.certificates(func(c *skepv1.UserCertificate) bool { return c.NotAfter.AsTime().Before(end) }) {
		err := s.bucket.Delete(ctx, keys.User.Key(u.Serial), u.revision)
		if err != nil && !errors.Is(err, kv.ErrConflict) && !errors.Is(err, kv.ErrNotFound) {
			return fmt.Errorf("forget certificate %s of user %s: %w", u.Serial, u.Name, err)
		}
	}
	return nil
}

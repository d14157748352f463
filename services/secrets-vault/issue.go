package vault

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
)

const (
	maxUserExpiry = 10 * 365 * 24 * time.Hour
	userPrefix    = "user-" // keeps users and node ids apart
)

var userName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)

// renew gives a node that state still knows a new certificate, in the role state certifies. The broker lets a node ask
// for itself only.
func (s *Service) renew(ctx context.Context, node string, r *skepv1.RenewRequest) (*skepv1.RenewReply, error) {
	if r.NodeId != "" && r.NodeId != node {
		return nil, fault.Denied("renew the certificate of %s: asked for by %s", r.NodeId, node)
	}
	n, err := askState(ctx, s, api.NodeInspect, &skepv1.Ref{Ref: node})
	// state also finds names and prefixes: a removed node's id must not lead to another node.
	if fault.Is(err, fault.CodeNotFound) || err == nil && n.GetNode().GetMeta().GetId() != node {
		return nil, fault.Denied("renew the certificate of %s: the node was removed from the cluster; it can join again with a token", node)
	}
	if err != nil {
		return nil, err
	}
	if len(r.CsrDer) > maxCSR {
		return nil, fault.Invalid("renew the certificate of %s: the certificate request is too long", node)
	}
	ident := pki.Identity{NodeID: node, Role: pkiRole(n.Node.Role)}
	if n.Node.Witness { // whether it votes now or not
		ident.Role = pki.Witness
	}
	if ident.Role != pki.Worker {
		ident.Hosts = s.hostsOf(ctx, n.Node)
	}
	a := s.idx.authorities()
	cert, err := a.signs.Sign(r.CsrDer, ident, s.expiry(ctx))
	if err != nil {
		return nil, fault.Invalid("renew the certificate of %s: %v", node, err)
	}
	s.issued.WithLabelValues("renew").Inc()
	s.log.Info("certificate renewed", zap.String("node", node), zap.String("role", string(ident.Role)))
	cert, roots := a.certificate(cert, s.cfg.Now())
	return &skepv1.RenewReply{CertPem: cert, CaPem: roots}, nil
}

// token shows a join token, after replacing its secret if asked to.
func (s *Service) token(ctx context.Context, r *skepv1.JoinTokenRequest) (*skepv1.JoinTokenReply, error) {
	if r.Role != skepv1.NodeRole_NODE_ROLE_MANAGER && r.Role != skepv1.NodeRole_NODE_ROLE_WORKER {
		return nil, fault.Invalid("join token: unknown role %d: it is worker or manager", r.Role)
	}
	role := pkiRole(r.Role)
	for {
		t, ok := s.idx.token(role)
		if !ok && !r.Rotate {
			return nil, fault.NotFound("there is no join token for %s; make one: skep join-token --rotate %s", short(role), short(role))
		}
		if r.Rotate {
			next, err := s.rotate(ctx, role, t)
			if errors.Is(err, kv.ErrConflict) {
				continue // somebody else rotated it just now; both get a token of their own making in turn
			}
			if err != nil {
				return nil, fmt.Errorf("rotate the join token for %s: %w", short(role), err)
			}
			t.tokenRecord = next
		} else {
			s.tellToken(ctx, "token-read", role)
		}
		text := pki.Token{Digest: pki.Digest(s.idx.authorities().token()), Secret: t.Secret}.String()
		addrs, _ := s.managers(ctx)
		return &skepv1.JoinTokenReply{Token: text, ManagerAddrs: addrs}, nil
	}
}

func (s *Service) rotate(ctx context.Context, role pki.Role, t token) (tokenRecord, error) {
	key, next := tokenKey(role), t.rotate(s.cfg.Now())
	sealed, err := s.idx.seal.seal(key, next)
	if err != nil {
		return next, err
	}
	rev, err := s.bucket.Set(ctx, key, sealed, t.revision)
	if errors.Is(err, kv.ErrConflict) {
		// Our index is behind; let it catch up before the next attempt.
		if e, gerr := s.bucket.Get(ctx, key); gerr == nil {
			if werr := s.feed.Wait(ctx, e.Revision); werr != nil {
				return next, werr
			}
		}
		return next, err
	}
	if err != nil {
		return next, err
	}
	if err := s.feed.Wait(ctx, rev); err != nil {
		return next, err
	}
	s.log.Info("join token rotated", zap.String("role", short(role)))
	s.tellToken(ctx, "token-rotate", role)
	return next, nil
}

// tellToken tells who has seen a join token: it makes its holder a node.
func (s *Service) tellToken(ctx context.Context, verb string, role pki.Role) {
	s.publish(ctx, &skepv1.Event{Kind: "cluster", Id: s.idx.authority().ClusterID(), Name: "default", Verb: verb, Attributes: map[string]string{"role": short(role)}})
}

// issueUser certifies a person's key for the remote CLI. Admins ask; the broker lets nobody else.
func (s *Service) issueUser(ctx context.Context, r *skepv1.IssueUserRequest) (*skepv1.IssueUserReply, error) {
	if !userName.MatchString(r.Name) {
		return nil, fault.Usage("user %q: a name is up to 63 of a-z, 0-9, - and _, beginning and ending with a letter or digit", printable(r.Name))
	}
	if pki.IsSerial(r.Name) {
		return nil, fault.Invalid("user %s: that could be the serial number of a certificate; choose another name", r.Name)
	}
	if r.Name == rpc.Root {
		return nil, fault.Invalid("user %s: that is who uses a manager's socket; choose another name", r.Name)
	}
	if !slices.Contains(pki.UserRoles, r.Role) {
		return nil, fault.Usage("user %s: unknown role %q: it is %s", r.Name, printable(r.Role), strings.Join(pki.UserRoles, ", "))
	}
	expiry := pki.DefaultExpiry
	if r.Expiry != nil {
		expiry = r.Expiry.AsDuration()
	}
	if expiry <= 0 || expiry > maxUserExpiry {
		return nil, fault.Invalid("user %s: the certificate's life must be above 0 and at most 10 years", r.Name)
	}
	if len(r.CsrDer) > maxCSR {
		return nil, fault.Invalid("user %s: the certificate request is too long", r.Name)
	}
	if r.First {
		if err := s.firstOf(ctx, r.Name, ""); err != nil {
			return nil, err
		}
	}
	a := s.idx.authorities()
	c, cert, err := s.certifyUser(ctx, a, r.CsrDer, r.Name, r.Role, expiry)
	if err != nil {
		return nil, err
	}
	if r.First {
		// Two who ask at once both write before they look, so the second to write sees the first.
		if err := s.firstOf(ctx, r.Name, c.Serial); err != nil {
			s.unrecord(ctx, c)
			return nil, err
		}
	}
	s.tell(ctx, "issue", c)
	s.log.Info("user certified", zap.String("user", r.Name), zap.String("role", r.Role), zap.Duration("expiry", expiry))
	return s.issuedTo(ctx, a, cert), nil
}

// certifyUser makes a certificate for a user's key, and records who asked for it before anybody has it.
func (s *Service) certifyUser(ctx context.Context, a *authorities, csr []byte, name, role string, life time.Duration) (*skepv1.UserCertificate, []byte, error) {
	cert, err := a.signs.Sign(csr, pki.Identity{NodeID: userPrefix + name, Role: pki.User, UserRole: role}, life)
	if err != nil {
		return nil, nil, fault.Invalid("user %s: %v", name, err)
	}
	leaf, err := pki.ParseCertificate(cert)
	if err != nil {
		return nil, nil, fmt.Errorf("user %s: %w", name, err)
	}
	c := &skepv1.UserCertificate{
		Serial: pki.Serial(leaf), Name: name, Role: role, IssuedAt: timestamppb.New(s.cfg.Now()), NotAfter: timestamppb.New(leaf.NotAfter), IssuedBy: rpc.Asker(ctx), IssuedFrom: rpc.AskerAddress(ctx),
		Issuer: pki.Digest(a.signs.Cert),
	}
	return c, cert, s.record(ctx, c)
}

// issuedTo is what a user is given.
func (s *Service) issuedTo(ctx context.Context, a *authorities, cert []byte) *skepv1.IssueUserReply {
	s.issued.WithLabelValues("user").Inc()
	addrs, _ := s.managers(ctx)
	return &skepv1.IssueUserReply{CertPem: cert, CaPem: pki.EncodeCertificates(a.roots...), ManagerAddrs: addrs}
}

// askState asks the state service.
func askState[Q, R proto.Message](ctx context.Context, s *Service, e api.Endpoint[Q, R], req Q) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, askStateFor)
	defer cancel()
	return api.Call(ctx, s.cfg.NC, e, req)
}

func short(r pki.Role) string {
	if r == pki.Manager {
		return "manager"
	}
	return "worker"
}

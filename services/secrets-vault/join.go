package vault

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
)

const (
	// wrongPerSecond bounds the wrong tokens that are answered in words. Right ones pass whatever others do: guessing 129
	// random bits is hopeless, and a limit that wrong tokens could use up for right ones would be the better attack.
	wrongPerSecond = 10
	wrongBurst     = 50

	askStateFor = 5 * time.Second
	maxCSR      = 4 << 10
	maxNameLen  = 253
)

// join serves connections without a certificate: everything in the request is a stranger's word. How often one may ask is
// the broker's limit, which knows the connection.
func (s *Service) join(ctx context.Context, r *skepv1.JoinRequest) (*skepv1.JoinReply, error) {
	now := s.cfg.Now()
	role, err := s.checkToken(r.Token)
	if err != nil {
		if fault.Is(err, fault.CodeDenied) && !s.wrong.AllowN(now, 1) {
			err = fault.Exhausted("join: too many wrong tokens lately; wait a minute and join again")
		}
		s.refusals.Warn("refused a join", zap.String("hostname", printable(r.Hostname)), zap.Error(err))
		return nil, err
	}
	if err := checkClock(r.Now, now); err != nil {
		s.refusals.Warn("refused a join", zap.String("hostname", printable(r.Hostname)), zap.Error(err))
		return nil, err
	}
	if len(r.CsrDer) > maxCSR || len(r.Hostname) > maxNameLen || len(r.Addr) > maxNameLen || printable(r.Hostname) != r.Hostname || printable(r.Addr) != r.Addr {
		return nil, fault.Invalid("join: the request's host name, address or certificate request is too long or malformed")
	}
	csr, err := pki.ParseCSR(r.CsrDer)
	if err != nil {
		return nil, fault.Invalid("join: %v", err)
	}
	ident := pki.Identity{NodeID: pki.NodeIDFor(csr), Role: role}
	if role == pki.Manager {
		ident.Hosts = hosts(r.Addr)
	}
	if r.Witness {
		if role != pki.Manager {
			err := fault.Denied("join as a witness: that takes the managers' token, for it votes as they do: skep join-token manager")
			s.refusals.Warn("refused a join", zap.String("hostname", printable(r.Hostname)), zap.Error(err))
			return nil, err
		}
		ident.Role, r.Availability = pki.Witness, skepv1.Availability_AVAILABILITY_DRAIN
	}
	a := s.idx.authorities()
	cert, err := a.signs.Sign(r.CsrDer, ident, s.expiry(ctx))
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	// The cluster knows the node before the node has its certificate, so no certificate exists that nobody can revoke.
	_, err = askState(ctx, s, api.NodeAdmit, &skepv1.AdmitNodeRequest{
		NodeId: ident.NodeID, Role: protoRole(role), Availability: r.Availability, Hostname: r.Hostname, Addr: member.HostOf(r.Addr),
		Witness: r.Witness,
	})
	if err != nil {
		return nil, err
	}
	s.issued.WithLabelValues("join").Inc()
	s.log.Info("node joined", zap.String("node", ident.NodeID), zap.String("hostname", r.Hostname), zap.String("role", string(ident.Role)), zap.String("addr", r.Addr))
	cert, roots := a.certificate(cert, now)
	addrs, epoch := s.managers(ctx)
	return &skepv1.JoinReply{
		NodeId: ident.NodeID, ClusterId: a.current.ClusterID(), CertPem: cert, CaPem: roots, Role: protoRole(role),
		ManagerAddrs: addrs, Epoch: epoch, Now: timestamppb.New(now),
	}, nil
}

// checkToken finds the role of a token. Both secrets are always compared, in constant time.
func (s *Service) checkToken(text string) (pki.Role, error) {
	t, err := pki.ParseToken(text)
	if err != nil {
		return "", fault.Invalid("%v", err)
	}
	if !s.idx.authorities().named(t.Digest, s.cfg.Now()) {
		return "", fault.Denied("the join token belongs to another cluster; get one of this cluster from a manager: skep join-token worker")
	}
	worker, okW := s.idx.token(pki.Worker)
	manager, okM := s.idx.token(pki.Manager)
	isWorker, isManager := worker.matches(t.Secret), manager.matches(t.Secret)
	switch {
	case okW && isWorker:
		return pki.Worker, nil
	case okM && isManager:
		return pki.Manager, nil
	case worker.was(t.Secret):
		return "", fault.Denied("the join token was rotated; ask a manager for the current one: skep join-token worker")
	case manager.was(t.Secret):
		return "", fault.Denied("the join token was rotated; ask a manager for the current one: skep join-token manager")
	}
	return "", fault.Denied("the join token is wrong: it was copied with a mistake, or rotated long ago; ask a manager for the current one: skep join-token worker")
}

// checkClock: certificates are dated back by more than the tolerance, so that a machine within it works.
func checkClock(theirs *timestamppb.Timestamp, ours time.Time) error {
	if theirs == nil {
		return nil
	}
	off, word := theirs.AsTime().Sub(ours), "ahead of"
	if off < 0 {
		off, word = -off, "behind"
	}
	if off <= pki.ClockTolerance {
		return nil
	}
	return fault.Invalid("this machine's clock is %s %s the cluster's: set it (e.g. systemctl restart systemd-timesyncd) and join again", roughly(off), word)
}

func roughly(d time.Duration) string {
	switch {
	case d < 3*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d < 72*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// expiry is the life of a node's certificate: the cluster's setting, or the default when state does not answer.
func (s *Service) expiry(ctx context.Context) time.Duration {
	if c, err := askState(ctx, s, api.ClusterInspect, &skepv1.Empty{}); err == nil {
		if d := c.GetCluster().GetSpec().GetNodeCertExpiry().AsDuration(); d > 0 {
			return d
		}
	}
	return pki.DefaultExpiry
}

func protoRole(r pki.Role) skepv1.NodeRole {
	if r == pki.Manager {
		return skepv1.NodeRole_NODE_ROLE_MANAGER
	}
	return skepv1.NodeRole_NODE_ROLE_WORKER
}

func pkiRole(r skepv1.NodeRole) pki.Role {
	if r == skepv1.NodeRole_NODE_ROLE_MANAGER {
		return pki.Manager
	}
	return pki.Worker
}

// printable drops what a stranger could use to forge log lines or tables.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), maxNameLen)])
}

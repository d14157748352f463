package vault

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/pki"
)

// A rotation of the root goes through phases (skepv1.CAPhase), each of them a state of the record secret/ca:
//
//	TRUST  the next root exists, signed by the old one; managers learn to trust it
//	ISSUE  certificates are of the next root; every node renews
//	USERS  every node has one; certificates that users hold of the old root are accepted and exchanged
//	DROP   the old root's key is gone; nodes learn to trust the new root alone
//
// What every vault does follows from the record alone, and the driver (rotator.go) brings the record forward: a vault that
// is killed goes on where the record is.

const (
	// usersFor is how long users' certificates of the old root are accepted at most, once all nodes have moved.
	usersFor = 7 * 24 * time.Hour
	// formerFor is how long a join token that names a root that was rotated out still lets in.
	formerFor = 30 * 24 * time.Hour
	// formerMost bounds the roots that are remembered; each adds two certificates to what managers show.
	formerMost = 4
)

// caRecord is what stands sealed in the bucket.
type caRecord struct {
	Cert     string       `json:"cert"`
	Key      string       `json:"key"`
	Cluster  string       `json:"cluster,omitempty"` // a root of one's own does not name it
	Rotation *rotation    `json:"rotation,omitempty"`
	Former   []formerRoot `json:"former,omitempty"` // newest first
	// Rotated counts finished rotations: certificates without an issuer in their record are of the time before the first.
	Rotated int `json:"rotated,omitempty"`
}

type rotation struct {
	Phase skepv1.CAPhase `json:"phase"`
	Began time.Time      `json:"began"`
	Since time.Time      `json:"since"` // of the phase
	By    string         `json:"by,omitempty"`
	Force bool           `json:"force,omitempty"` // it does not wait for nodes that are away, nor for users
	// The next root; empty in the phase DROP.
	Cert  string `json:"cert,omitempty"`
	Key   string `json:"key,omitempty"`
	Cross string `json:"cross,omitempty"` // the next root, signed by the old one
}

type formerRoot struct {
	Cert  string    `json:"cert"`
	Cross string    `json:"cross"`
	Until time.Time `json:"until"`
}

// authorities are the record, read: what signs, what is trusted, what is shown.
type authorities struct {
	caRecord
	revision uint64

	current *pki.CA // the record's
	next    *pki.CA // the rotation's, nil without one and in the phase DROP
	signs   *pki.CA
	roots   []*x509.Certificate // trusted, that which signs first
	cross   []*x509.Certificate // of the rotation: the next root signed by the old one, and the root that does not sign
	former  []former
}

type former struct {
	cert, cross *x509.Certificate
	until       time.Time
}

func (r caRecord) read(revision uint64) (*authorities, error) {
	a := &authorities{caRecord: r, revision: revision}
	var err error
	if a.current, err = readCA(r.Cert, r.Key, r.Cluster); err != nil {
		return nil, err
	}
	a.signs, a.roots = a.current, []*x509.Certificate{a.current.Cert}
	if t := r.Rotation; t != nil && t.Cert != "" {
		if a.next, err = readCA(t.Cert, t.Key, a.current.ClusterID()); err != nil {
			return nil, err
		}
		link, err := pki.ParseCertificate([]byte(t.Cross))
		if err != nil {
			return nil, fmt.Errorf("read the next root: %w", err)
		}
		other := a.next
		if t.Phase != skepv1.CAPhase_CA_PHASE_TRUST {
			a.signs, other = a.next, a.current
		}
		a.roots = []*x509.Certificate{a.signs.Cert, other.Cert}
		a.cross = []*x509.Certificate{link, other.Cert}
	}
	for _, f := range r.Former {
		old, err := pki.ParseCertificate([]byte(f.Cert))
		if err != nil {
			return nil, fmt.Errorf("read a former root: %w", err)
		}
		link, err := pki.ParseCertificate([]byte(f.Cross))
		if err != nil {
			return nil, fmt.Errorf("read a former root: %w", err)
		}
		a.former = append(a.former, former{old, link, f.Until})
	}
	return a, nil
}

func readCA(cert, key, cluster string) (*pki.CA, error) {
	ca, err := pki.ParseCA([]byte(cert), []byte(key))
	if err == nil && cluster != "" {
		ca = ca.For(cluster)
	}
	return ca, err
}

// phase is that of the rotation, UNSPECIFIED without one.
func (a *authorities) phase() skepv1.CAPhase {
	if a.Rotation == nil {
		return skepv1.CAPhase_CA_PHASE_UNSPECIFIED
	}
	return a.Rotation.Phase
}

// chain is what a node shows beside its certificate: it leads from the roots that others may know to the one that signed.
func (a *authorities) chain(now time.Time) []*x509.Certificate {
	out := slices.Clone(a.cross)
	for _, f := range a.former {
		if now.Before(f.until) {
			out = append(out, f.cross, f.cert)
		}
	}
	return out
}

// others vouch for the vault's key beside the root that signs.
func (a *authorities) others() []*pki.CA {
	switch {
	case a.next == nil:
		return nil
	case a.signs == a.next:
		return []*pki.CA{a.current}
	}
	return []*pki.CA{a.next}
}

// token is the root that join tokens name: the next one once every manager shows a certificate of it.
func (a *authorities) token() *x509.Certificate {
	if a.next != nil && a.phase() == skepv1.CAPhase_CA_PHASE_USERS {
		return a.next.Cert
	}
	return a.current.Cert
}

// named reports whether a join token with this digest is of this cluster: of a root that is trusted, or was not long ago.
func (a *authorities) named(digest string, now time.Time) bool {
	return slices.ContainsFunc(a.roots, func(c *x509.Certificate) bool { return pki.Digest(c) == digest }) ||
		slices.ContainsFunc(a.former, func(f former) bool { return now.Before(f.until) && pki.Digest(f.cert) == digest })
}

// certificate is a new certificate with its chain, and the roots, as text.
func (a *authorities) certificate(leaf []byte, now time.Time) (cert, roots []byte) {
	return append(leaf, pki.EncodeCertificates(a.chain(now)...)...), pki.EncodeCertificates(a.roots...)
}

// holding is what a node says of itself.
type holding struct {
	issuer string
	roots  []string
}

// arrived reports whether a node is where the phase brings it.
func (a *authorities) arrived(h holding) bool {
	switch a.phase() {
	case skepv1.CAPhase_CA_PHASE_TRUST:
		return slices.Contains(h.roots, pki.Digest(a.next.Cert))
	case skepv1.CAPhase_CA_PHASE_ISSUE, skepv1.CAPhase_CA_PHASE_USERS:
		return h.issuer == pki.Digest(a.next.Cert)
	case skepv1.CAPhase_CA_PHASE_DROP:
		return h.issuer == pki.Digest(a.current.Cert) && len(h.roots) == 1
	}
	return true
}

// scene is what the driver sees: what decides whether a phase is over.
type scene struct {
	nodes    int
	managers int // that are up and have not arrived
	up       int // nodes that are up and have not arrived
	away     int // nodes that are down and have not arrived
	users    int // certificates of the old root that have not been exchanged
	asked    bool
	now      time.Time
	settle   time.Duration
}

// over reports whether the phase has done what it is for. In TRUST only managers count: everybody else knows the next root
// by the old one's signature. DROP waits for no node that is away, which learns of it when it is back. With force nobody
// is waited for but managers.
func (a *authorities) over(s scene) bool {
	r := a.Rotation
	switch {
	case !s.asked || s.managers > 0 || s.now.Sub(r.Since) < s.settle:
		return false
	case r.Phase == skepv1.CAPhase_CA_PHASE_TRUST || r.Force:
		return true
	case r.Phase == skepv1.CAPhase_CA_PHASE_DROP:
		return s.up == 0
	case s.up > 0 || s.away > 0:
		return false
	}
	return r.Phase == skepv1.CAPhase_CA_PHASE_ISSUE || s.users == 0 || s.now.Sub(r.Since) > usersFor
}

// advance is the record in the phase after.
func (a *authorities) advance(now time.Time) caRecord {
	next := a.caRecord
	r := *a.Rotation
	next.Rotation = &r
	r.Since = now
	switch r.Phase {
	case skepv1.CAPhase_CA_PHASE_TRUST:
		r.Phase = skepv1.CAPhase_CA_PHASE_ISSUE
	case skepv1.CAPhase_CA_PHASE_ISSUE:
		r.Phase = skepv1.CAPhase_CA_PHASE_USERS
	case skepv1.CAPhase_CA_PHASE_USERS:
		next.Former = []formerRoot{{Cert: a.Cert, Cross: r.Cross, Until: now.Add(formerFor)}}
		for _, f := range a.Former {
			if now.Before(f.Until) && len(next.Former) < formerMost {
				next.Former = append(next.Former, f)
			}
		}
		next.Cert, next.Key, next.Cluster, next.Rotated = r.Cert, r.Key, a.current.ClusterID(), a.Rotated+1
		r.Phase, r.Cert, r.Key, r.Cross = skepv1.CAPhase_CA_PHASE_DROP, "", "", ""
	default:
		next.Rotation = nil
	}
	return next
}

// reply is what people are told.
func (a *authorities) reply(progress *skepv1.CAProgress, now time.Time) *skepv1.CAReply {
	out := &skepv1.CAReply{Root: rootOf(a.token())}
	for _, f := range a.former {
		if now.Before(f.until) {
			out.Former = append(out.Former, rootOf(f.cert))
			out.FormerUntil = append(out.FormerUntil, timestamppb.New(f.until))
		}
	}
	r := a.Rotation
	if r == nil {
		return out
	}
	out.Rotation = &skepv1.CARotation{Phase: r.Phase, BeganAt: timestamppb.New(r.Began), By: r.By}
	goal := a.current.Cert
	if a.next != nil {
		goal = a.next.Cert
		out.Rotation.Next = rootOf(goal)
	}
	if r.Phase == skepv1.CAPhase_CA_PHASE_USERS {
		out.Rotation.UsersUntil = timestamppb.New(r.Since.Add(usersFor))
	}
	if progress.GetDigest() == pki.Digest(goal) && progress.GetPhase() == r.Phase {
		out.Progress = progress
	}
	return out
}

func rootOf(c *x509.Certificate) *skepv1.CARoot {
	return &skepv1.CARoot{
		CertPem: pki.EncodeCertificates(c), Digest: pki.Digest(c), Subject: c.Subject.String(),
		NotBefore: timestamppb.New(c.NotBefore), NotAfter: timestamppb.New(c.NotAfter),
	}
}

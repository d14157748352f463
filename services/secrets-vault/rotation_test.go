package vault

import (
	"crypto/x509"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/spec"
)

// TestWhenAPhaseIsOver: the decision, case by case.
func TestWhenAPhaseIsOver(t *testing.T) {
	now := time.Now()
	const (
		trust, issue, users, drop = skepv1.CAPhase_CA_PHASE_TRUST, skepv1.CAPhase_CA_PHASE_ISSUE, skepv1.CAPhase_CA_PHASE_USERS, skepv1.CAPhase_CA_PHASE_DROP
	)
	all := scene{nodes: 5, asked: true, now: now, settle: time.Second}
	with := func(f func(*scene)) scene { s := all; f(&s); return s }
	for _, c := range []struct {
		name  string
		phase skepv1.CAPhase
		since time.Duration
		force bool
		scene scene
		want  bool
	}{
		{"nobody was asked", trust, time.Minute, true, scene{now: now}, false},
		{"all trust", trust, time.Minute, false, all, true},
		{"too soon", trust, time.Millisecond, false, all, false},
		{"a manager lacks the root", trust, time.Minute, false, with(func(s *scene) { s.managers = 1 }), false},
		{"a worker lacks it, another is away", trust, time.Minute, false, with(func(s *scene) { s.up, s.away = 1, 1 }), true},
		{"all moved", issue, time.Minute, false, with(func(s *scene) { s.users = 3 }), true},
		{"a node is up", issue, time.Hour, false, with(func(s *scene) { s.up = 1 }), false},
		{"a node is away", issue, time.Hour, false, with(func(s *scene) { s.away = 1 }), false},
		{"away, by force", issue, time.Minute, true, with(func(s *scene) { s.away = 1 }), true},
		{"a manager, by force", issue, time.Minute, true, with(func(s *scene) { s.managers = 1 }), false},
		{"users hold old ones", users, time.Hour, false, with(func(s *scene) { s.users = 1 }), false},
		{"users had their time", users, usersFor + time.Minute, false, with(func(s *scene) { s.users = 1 }), true},
		{"users, by force", users, time.Minute, true, with(func(s *scene) { s.users = 1 }), true},
		{"no users", users, time.Minute, false, all, true},
		{"a node joined with an old one", users, time.Hour, false, with(func(s *scene) { s.up = 1 }), false},
		{"told", drop, time.Minute, false, all, true},
		{"one is away", drop, time.Minute, false, with(func(s *scene) { s.away = 1 }), true},
		{"one has not heard", drop, time.Minute, false, with(func(s *scene) { s.up = 1 }), false},
	} {
		a := &authorities{caRecord: caRecord{Rotation: &rotation{Phase: c.phase, Since: now.Add(-c.since), Force: c.force}}}
		if got := a.over(c.scene); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestRecordOfARotation: at each step the record says the same to a vault that starts there, and the old key goes with DROP.
func TestRecordOfARotation(t *testing.T) {
	now := time.Now()
	cluster := id.New()
	old, err := pki.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	next, err := pki.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	link, err := old.CrossSign(next.Cert)
	if err != nil {
		t.Fatal(err)
	}
	text := func(c *pki.CA) (string, string) {
		k, err := c.KeyPEM()
		if err != nil {
			t.Fatal(err)
		}
		return string(c.CertPEM()), string(k)
	}
	r := caRecord{}
	r.Cert, r.Key = text(old)
	r.Rotation = &rotation{Phase: skepv1.CAPhase_CA_PHASE_TRUST, Cross: string(pki.EncodeCertificates(link))}
	r.Rotation.Cert, r.Rotation.Key = text(next)
	_, oldKey := text(old)
	for _, c := range []struct {
		signs, token *pki.CA
		roots        []*pki.CA
	}{
		{old, old, []*pki.CA{old, next}},
		{next, old, []*pki.CA{next, old}},
		{next, next, []*pki.CA{next, old}},
		{next, next, []*pki.CA{next}},
		{next, next, []*pki.CA{next}},
	} {
		a, err := r.read(1)
		if err != nil {
			t.Fatal(err)
		}
		name := "none"
		if a.Rotation != nil {
			name = spec.Word(a.phase())
		}
		var want []*x509.Certificate
		for _, w := range c.roots {
			want = append(want, w.Cert)
		}
		if string(pki.EncodeCertificates(a.roots...)) != string(pki.EncodeCertificates(want...)) || !a.signs.Cert.Equal(c.signs.Cert) || !a.token().Equal(c.token.Cert) || a.signs.ClusterID() != cluster {
			t.Errorf("%s: other roots, or another signs", name)
		}
		if !a.named(pki.Digest(old.Cert), now) || len(a.roots) == 2 && !a.named(pki.Digest(next.Cert), now) {
			t.Errorf("%s: a token is refused", name)
		}
		// Who knows one of the roots knows all, by what is shown.
		for _, known := range []*pki.CA{old, next} {
			if known == next && name == "trust" {
				continue
			}
			if !pki.Follows([]*x509.Certificate{known.Cert}, a.chain(now), []*x509.Certificate{a.signs.Cert}) {
				t.Errorf("%s: who knows one root does not know the other", name)
			}
		}
		if gone := name == "drop" || name == "none"; gone == (r.Key == oldKey) {
			t.Errorf("%s: the old key is there: %v", name, !gone)
		}
		if a.Rotation == nil {
			if a.named(pki.Digest(old.Cert), now.Add(formerFor+time.Hour)) || len(a.chain(now.Add(formerFor+time.Hour))) > 0 {
				t.Error("a former root is remembered for ever")
			}
			break
		}
		r = a.advance(now)
	}
	if r.Rotation != nil || r.Rotated != 1 {
		t.Errorf("after it: rotated %d times, %v", r.Rotated, r.Rotation != nil)
	}
}

package join

import (
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// TestDue: a certificate is renewed at 50-80 % of the life it was meant to have, whatever that is; the beginning that is
// dated back plays no part.
func TestDue(t *testing.T) {
	ca := pkitest.NewCA(t)
	for _, life := range []time.Duration{time.Hour, 24 * time.Hour, pki.DefaultExpiry} {
		made := time.Now()
		s := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, life)
		first, last := time.Duration(1<<62), time.Duration(0)
		for range 2000 {
			at := due(s).Sub(made)
			first, last = min(first, at), max(last, at)
		}
		// A certificate's times are whole seconds.
		if first < life/2-2*time.Second || last > life*8/10+2*time.Second {
			t.Errorf("a certificate of %s is renewed after %s to %s", life, first, last)
		}
		if last-first < life/5 {
			t.Errorf("nodes that joined together renew a certificate of %s within %s", life, last-first)
		}
	}
}

package bus

import (
	"strings"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// Whoever knows the cluster's CA is told its epoch, also a node that was removed; a stranger's certificate is of no use, and
// an answer of another cluster counts for nothing.
func TestEpochIsTold(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	cfg.Found = true
	m, _, ended := manage(t, cfg)
	awaitReady(t, m, ended, patience)
	m.group.mu.Lock()
	m.group.mine.Epoch = 7
	m.group.mu.Unlock()
	member := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	m.cfg.Revoked = func(string) bool { return true }
	r, err := AskEpoch(within(t), member, cfg.Advertise)
	if err != nil || r.Epoch != 7 || r.NodeId != cfg.NodeID || r.ClusterId != cfg.TLS.Identity().ClusterID {
		t.Errorf("the answer is %v, %v", r, err)
	}
	foreign := pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	if r, err := AskEpoch(within(t), foreign, cfg.Advertise); err == nil {
		t.Errorf("another cluster's manager believes %v", r)
	}
	dead := lone(t, ca, id.New()).Advertise
	began := time.Now()
	for mine, want := range map[uint64]bool{6: true, 7: false, 8: false} {
		if r, addr := newerEpoch(within(t), member, []string{dead, cfg.Advertise}, mine); (r != nil) != want || want && addr != cfg.Advertise {
			t.Errorf("with epoch %d: %v by %s", mine, r, addr)
		}
	}
	t.Logf("three rounds took %v", time.Since(began))
	if _, err := AskEpoch(within(t), member, dead); err == nil || !strings.Contains(err.Error(), dead) {
		t.Errorf("nobody there: %v", err)
	}
}

package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/pki"
	skepv1 "skep.dev/proto/skep/v1"
)

func rootReply(t *testing.T) (*skepv1.CAReply, *skepv1.CARoot) {
	t.Helper()
	var out [2]*skepv1.CARoot
	for i := range out {
		ca, err := pki.NewCA("clusterclusterclustercl01")
		if err != nil {
			t.Fatal(err)
		}
		out[i] = &skepv1.CARoot{CertPem: ca.CertPEM(), Digest: pki.Digest(ca.Cert), Subject: ca.Cert.Subject.String(), NotAfter: timestamppb.New(ca.Cert.NotAfter)}
	}
	return &skepv1.CAReply{Root: out[0]}, out[1]
}

func TestCAShowsTheRoot(t *testing.T) {
	c := newCluster(t)
	r, _ := rootReply(t)
	c.roots = []*skepv1.CAReply{r}
	if got := c.run("ca"); got.code != 0 || got.out != string(r.Root.CertPem) {
		t.Errorf("%+v", got)
	}
	got := c.run("swarm", "ca", "--json")
	var v caView
	if err := json.Unmarshal([]byte(got.out), &v); err != nil || v.Root.Digest != r.Root.Digest || v.Root.Certificate != string(r.Root.CertPem) || v.Rotation != nil {
		t.Errorf("%v: %s", err, got.out)
	}
	for _, line := range [][]string{{"--detach"}, {"-q"}, {"--ca-cert", "x"}, {"--ca-key", "x"}, {"--cert-expiry", "2h"}, {"--force-finish"}} {
		if got := c.run(append([]string{"ca"}, line...)...); got.code != ExitUsage || !strings.Contains(got.err, "requires the `--rotate` flag to update the CA") {
			t.Errorf("ca %v: %+v", line, got)
		}
	}
	if got := c.run("ca", "--rotate", "--cert-expiry", "59m"); got.code != ExitUsage || !strings.Contains(got.err, "minimum certificate expiry time is: 1h0m0s") {
		t.Errorf("%+v", got)
	}
}

// TestCARotateShowsProgress: each change once, then the new root on the standard output.
func TestCARotateShowsProgress(t *testing.T) {
	c := newCluster(t)
	before, next := rootReply(t)
	at := func(p skepv1.CAPhase, progress *skepv1.CAProgress) *skepv1.CAReply {
		r := proto.CloneOf(before)
		r.Rotation = &skepv1.CARotation{Phase: p, Next: next, BeganAt: timestamppb.Now(), UsersUntil: timestamppb.New(time.Now().Add(time.Hour))}
		r.Progress = progress
		return r
	}
	away := &skepv1.CAProgress{Nodes: 3, Moved: 2, Waiting: []*skepv1.CAWaiting{{NodeId: nodeID, Hostname: "w2", Why: "it is down"}}}
	steps := []*skepv1.CAReply{
		at(skepv1.CAPhase_CA_PHASE_TRUST, nil), at(skepv1.CAPhase_CA_PHASE_ISSUE, away), at(skepv1.CAPhase_CA_PHASE_ISSUE, away),
		at(skepv1.CAPhase_CA_PHASE_DROP, &skepv1.CAProgress{Nodes: 3, Moved: 3}), {Root: next, Former: []*skepv1.CARoot{before.Root}, FormerUntil: []*timestamppb.Timestamp{timestamppb.Now()}},
	}
	c.roots = append([]*skepv1.CAReply{}, steps...)
	got := c.run("ca", "--rotate")
	if got.code != 0 || got.out != string(next.CertPem) {
		t.Errorf("%+v", got)
	}
	for _, line := range []string{"the managers learn to trust the next root", "nodes get certificates of the next root: 2/3 nodes; waiting for w2 (it is down)", "the old root is dropped: 3/3 nodes", "every node has a certificate of the new root"} {
		if strings.Count(got.err, line) != 1 {
			t.Errorf("%q is said %d times: %s", line, strings.Count(got.err, line), got.err)
		}
	}
	// It does not wait for users, and says what becomes of them.
	c.roots = []*skepv1.CAReply{at(skepv1.CAPhase_CA_PHASE_USERS, &skepv1.CAProgress{Nodes: 3, Moved: 3, Users: []string{"ada"}, UsersLeft: 1})}
	if got := c.run("ca", "--rotate"); got.code != 0 || !strings.Contains(got.err, "1 users' certificates of the old one (ada) are accepted until") {
		t.Errorf("%+v", got)
	}
	c.roots = append([]*skepv1.CAReply{}, steps...)
	if got := c.run("ca", "--rotate", "--detach"); got.code != 0 || got.out != "" || len(c.roots) != len(steps)-1 {
		t.Errorf("%+v", got)
	}
	if got := c.run("ca", "--rotate", "-q", "--json"); got.code != 0 || got.err != "" || !strings.Contains(got.out, `"tokens_until"`) {
		t.Errorf("%+v", got)
	}
}

func TestCAFilesAreChecked(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	ca, err := pki.NewCA("c")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	cert, open, closed := filepath.Join(dir, "c"), filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	if err := errors.Join(os.WriteFile(cert, ca.CertPEM(), 0o644), os.WriteFile(open, key, 0o644), os.WriteFile(closed, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	for want, line := range map[string][]string{
		"give both":       {"--ca-cert", cert},
		"others can read": {"--ca-cert", cert, "--ca-key", open},
		"there is no PEM": {"--ca-cert", "/dev/null", "--ca-key", closed},
		"no such file":    {"--ca-cert", cert, "--ca-key", filepath.Join(dir, "none")},
		"give either":     {"--ca-cert", cert, "--ca-key", closed, "--force-finish"},
	} {
		if got := c.run(append([]string{"ca", "--rotate"}, line...)...); got.code == 0 || !strings.Contains(got.err, want) {
			t.Errorf("%v: %+v, want %q", line, got, want)
		}
	}
}

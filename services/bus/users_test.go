package bus

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/subject"
)

func (p *peer) mustEnd(within time.Duration) {
	p.t.Helper()
	select {
	case <-p.closed:
	case <-time.After(within):
		p.t.Errorf("a revoked certificate's connection is still there after %v", within)
	}
}

// TestRevokedUser: a revoked certificate's connections end and it is refused, also by a manager that starts again and cannot
// read the store; another certificate of the same person goes on.
func TestRevokedUser(t *testing.T) {
	ca := pkitest.NewCA(t)
	cfg := lone(t, ca, id.New())
	cfg.Found = true
	m, err := NewManager(cfg, filepath.Join(t.TempDir(), "skep.sock"))
	if err != nil {
		t.Fatal(err)
	}
	cancel, ended := runManager(t, m)
	defer cancel()
	ada := pki.Identity{NodeID: "user-ada", Role: pki.User, UserRole: pki.Admin}
	lost, good := pkitest.Store(t, ca, ada, time.Hour), pkitest.Store(t, ca, ada, time.Hour)
	serial := pki.Serial(lost.Leaf())
	p, q, still := dial(t, m.Bus, lost), dial(t, m.Bus, lost), dial(t, m.Bus, good)

	vault, err := m.InProcess("vault")
	if err != nil {
		t.Fatal(err)
	}
	defer vault.Close()
	js, err := jetstream.New(vault)
	if err != nil {
		t.Fatal(err)
	}
	secret := kv.Open(js, subject.Secret)
	put := func(c *skepv1.UserCertificate) {
		t.Helper()
		body, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := secret.Put(within(t), keys.User.Key(c.Serial), body); err != nil {
			t.Fatal(err)
		}
	}
	record := &skepv1.UserCertificate{Serial: serial, Name: "ada", NotAfter: timestamppb.New(lost.Leaf().NotAfter)}
	put(record)
	put(&skepv1.UserCertificate{Serial: pki.Serial(good.Leaf()), Name: "ada", NotAfter: timestamppb.New(good.Leaf().NotAfter)})
	if err := p.FlushTimeout(10 * time.Second); err != nil {
		t.Fatalf("a certificate that was recorded and not revoked: %v", err)
	}
	record.RevokedAt = timestamppb.Now()
	began := time.Now()
	put(record)
	p.mustEnd(patience)
	q.mustEnd(patience)
	t.Logf("revoked: the last connection ended after %v", time.Since(began))
	if _, err := tryDial(t, m.Bus, lost); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a revoked certificate was let in: %v", err)
	}
	if err := still.FlushTimeout(10 * time.Second); err != nil {
		t.Errorf("another certificate of the same person: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	// The store is away: the broker itself starts, nobody follows the records.
	last := OpenUsers(cfg.DataDir, zap.NewNop())
	cfg.RevokedUser, cfg.Name = last.Revoked, serverName(cfg.NodeID, 1)
	b := run(t, cfg)
	if _, err := tryDial(t, b, lost); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a revoked certificate was let in before the store was read: %v", err)
	}
	if err := dial(t, b, good).FlushTimeout(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// TestUnreadableList: nobody is let in on a guess; the store's word counts once it is there.
func TestUnreadableList(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, revokedFile), []byte(`["0123`), 0o600); err != nil {
		t.Fatal(err)
	}
	u := OpenUsers(dir, zap.NewNop())
	one, two := "0123456789abcdef0123456789abcdef", "1123456789abcdef0123456789abcdef"
	if !u.Revoked(one) {
		t.Error("let in although the list is unreadable")
	}
	body, err := proto.Marshal(&skepv1.UserCertificate{Serial: one, NotAfter: timestamppb.Now(), RevokedAt: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	u.apply(kv.Delta{Reset: true, Entries: []kv.Entry{{Key: keys.User.Key(one), Value: body}, {Key: keys.User.Key(two), Value: []byte{0xff}}}})
	if !u.Revoked(one) || !u.Revoked(two) || u.Revoked("2123456789abcdef0123456789abcdef") {
		t.Error("refused: the revoked one, the unreadable record's, nobody else's")
	}
	if again := OpenUsers(dir, zap.NewNop()); !again.Revoked(one) || again.Revoked("2123456789abcdef0123456789abcdef") {
		t.Error("the list was not kept")
	}
	u.apply(kv.Delta{Entries: []kv.Entry{{Key: keys.User.Key(one), Deleted: true}}})
	if u.Revoked(one) || OpenUsers(dir, zap.NewNop()).Revoked(one) {
		t.Error("a forgotten certificate is still on the list")
	}
	if OpenUsers(t.TempDir(), zap.NewNop()).Revoked(one) {
		t.Error("a new manager refuses everybody")
	}
}

// FuzzRevokedFile: whatever is in the file, the list is read in full, or not at all.
func FuzzRevokedFile(f *testing.F) {
	for _, s := range []string{`["0123456789abcdef0123456789abcdef"]`, `{}`, `null`, ``, `[]`, `["x"]`, `["0123456789abcdef0123456789abcdef",1]`, `["0123456789abcdef0123456789abcdef"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := revokedIn("").parse(text)
		if err != nil {
			if list != nil {
				t.Fatalf("%q: half a list beside %v", text, err)
			}
			return
		}
		again, err := json.Marshal(append([]string{}, slices.Sorted(maps.Keys(list))...))
		if err != nil {
			t.Fatal(err)
		}
		if second, err := revokedIn("").parse(again); err != nil || len(second) != len(list) {
			t.Fatalf("%q is written as %q: %v", text, again, err)
		}
	})
}

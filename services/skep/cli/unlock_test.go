package cli

import (
	"context"
	"crypto/x509"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	"skep.dev/libs/unlockkey"
	skepv1 "skep.dev/proto/skep/v1"
)

// vaultLock is a manager's vault as far as its lock goes, with real keys.
type vaultLock struct {
	c      *cluster
	ca     *pki.CA
	key    unlockkey.Key // zero: autolock is off
	door   *seal.Door    // nil: not locked
	opens  int           // vaults of the manager that are still locked
	reply  *skepv1.UnlockReply
	refuse error
}

// withLock serves what unlock and unlock-key ask. The fake's mutex guards it.
func (c *cluster) withLock(t *testing.T) *vaultLock {
	t.Helper()
	v := &vaultLock{c: c, ca: pkitest.NewCA(t), reply: &skepv1.UnlockReply{}}
	store := pkitest.Store(t, v.ca, pki.Identity{NodeID: nodeID, Role: pki.Manager}, time.Hour)
	curve, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := curve.Public(v.ca)
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() {
		if v.door, err = seal.NewDoor(store); err != nil {
			t.Error(err)
		}
	}
	fresh()
	v.opens = 1
	serve(c, c.rs, api.AutolockGet, func(*skepv1.Empty) (*skepv1.AutolockState, error) {
		return &skepv1.AutolockState{On: v.key != unlockkey.Key{}, Key: &skepv1.UnlockKeyInfo{Id: v.key.ID()},
			Managers: []*skepv1.ManagerLock{{NodeId: nodeID, Hostname: "w1", Locked: v.opens > 0, Key: &skepv1.UnlockKeyInfo{Id: v.key.ID()}}}}, nil
	})
	serve(c, c.rs, api.AutolockKey, func(r *skepv1.UnlockKeyRequest) (*skepv1.UnlockKeyReply, error) {
		if v.refuse != nil {
			return nil, v.refuse
		}
		if r.Rotate {
			if v.key == (unlockkey.Key{}) {
				return nil, fault.Invalid("cannot rotate because autolock is not turned on")
			}
			v.key = newKey(t)
		}
		s := &skepv1.ShownUnlockKey{}
		if v.key != (unlockkey.Key{}) {
			s.Text = v.key.Text()
		}
		sealed, err := curve.To(r.Reader, s)
		return &skepv1.UnlockKeyReply{Key: public, Sealed: sealed}, err
	})
	serve(c, c.rs, api.VaultDoor.At(nodeID), func(*skepv1.VaultDoorRequest) (*skepv1.VaultDoor, error) { return v.door.Public(), nil })
	serve(c, c.rs, api.VaultUnlock.At(nodeID), func(r *skepv1.UnlockRequest) (*skepv1.UnlockReply, error) {
		if v.opens == 0 {
			return nil, fault.Conflict("swarm is not locked")
		}
		text, err := v.door.Open(r)
		if err != nil {
			return nil, fault.Conflict("%v", err)
		}
		if text != v.key.Text() {
			return nil, fault.Denied("swarm could not be unlocked: invalid key provided: this manager opens with another")
		}
		v.opens--
		fresh() // the next vault's door is another
		return v.reply, nil
	})
	c.flush()
	return v
}

func newKey(t *testing.T) unlockkey.Key {
	t.Helper()
	k, err := unlockkey.New()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run runs a command with this on its standard input.
func (v *vaultLock) run(in io.Reader, args ...string) result {
	var out, errs safeBuffer
	env := v.c.env(&out, &errs)
	env.In, env.CA = in, func(context.Context) (*x509.Certificate, error) { return v.ca.Cert, nil }
	env.Now, env.Patience = time.Now, time.Second
	code := Main(v.c.t.Context(), env, args)
	return result{code, out.String(), errs.String()}
}

func TestUnlock(t *testing.T) {
	c := newCluster(t)
	v := c.withLock(t)
	v.key = newKey(t)
	key := v.key.Text()
	want(t, v.run(strings.NewReader(""), "unlock"), 1, "", "malformed unlock key: it is empty")
	want(t, v.run(strings.NewReader("SWMKEY-1-abc\n"), "unlock"), 1, "", "a Docker Swarm key")
	want(t, v.run(strings.NewReader(key[:40]+"x"+key[41:]), "unlock"), 1, "", "malformed unlock key: its checksum does not fit")
	want(t, v.run(strings.NewReader(newKey(t).Text()), "swarm", "unlock"), 1, "", "swarm could not be unlocked: invalid key provided")
	if len(c.callsOf(&skepv1.UnlockRequest{})) != 1 {
		t.Error("a malformed key was sent")
	}
	want(t, v.run(strings.NewReader(key), "unlock", "w2"), 1, "", "no such manager: w2")
	want(t, v.run(strings.NewReader(key), "unlock", key, "x"), 2, "", "requires at most 1 argument")
	// Two vaults of one manager are unlocked one after the other.
	v.opens = 2
	want(t, v.run(strings.NewReader("  "+key+"\r\nmore"), "unlock", "w1"), 0, "Manager w1 unlocked.\n", "")
	if v.opens != 0 {
		t.Errorf("%d are still locked", v.opens)
	}
	// A key that was replaced meanwhile opens for the last time, and says so.
	v.opens = 1
	v.reply = &skepv1.UnlockReply{Current: &skepv1.UnlockKeyInfo{MadeAt: timestamppb.New(testNow)}}
	want(t, v.run(strings.NewReader(key), "unlock"), 0, "Manager w1 unlocked.\n", "the unlock key was replaced on 2026-01-02 15:00:00 UTC")
	for _, r := range c.callsOf(&skepv1.UnlockRequest{}) {
		if b, _ := proto.Marshal(r); strings.Contains(string(b), key[12:40]) {
			t.Error("the key is sent in clear")
		}
	}
}

// callsOf are the requests of a type.
func (c *cluster) callsOf(like proto.Message) (out []proto.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.calls {
		if r.ProtoReflect().Descriptor() == like.ProtoReflect().Descriptor() {
			out = append(out, r)
		}
	}
	return out
}

// A door that is not the manager's gets nothing.
func TestUnlockAForgedDoor(t *testing.T) {
	c := newCluster(t)
	v := c.withLock(t)
	v.key = newKey(t)
	stranger := pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: nodeID, Role: pki.Manager}, time.Hour)
	d, err := seal.NewDoor(stranger)
	if err != nil {
		t.Fatal(err)
	}
	v.door = d
	want(t, v.run(strings.NewReader(v.key.Text()), "unlock"), 1, "", "check the certificate of locked manager "+nodeID)
	if len(c.callsOf(&skepv1.UnlockRequest{})) != 0 {
		t.Error("the key was sent")
	}
}

// Where nothing is locked, or nobody answers, the error says which.
func TestUnlockWithoutADoor(t *testing.T) {
	c := newCluster(t)
	locked := false
	serve(c, c.rs, api.AutolockGet, func(*skepv1.Empty) (*skepv1.AutolockState, error) {
		return &skepv1.AutolockState{Managers: []*skepv1.ManagerLock{{NodeId: nodeID, Hostname: "w1", Locked: locked}}}, nil
	})
	c.flush()
	v := &vaultLock{c: c, ca: pkitest.NewCA(t)}
	want(t, v.run(strings.NewReader("x"), "unlock"), 1, "", "Error: swarm is not locked\n")
	c.mu.Lock()
	locked = true
	c.mu.Unlock()
	want(t, v.run(strings.NewReader("x"), "unlock"), 1, "", "manager w1 is locked and does not answer")
	want(t, c.run("node", "ls"), 0, "", "") // it is no manager in this list: nothing is marked
	want(t, c.run("info"), 0, " Locked: w1 (no secrets, joins and certificates until `skep unlock`)\n", "")
	want(t, c.run("info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.LockedManagers}}"), 0, "locked [w1]\n", "")
}

func TestUnlockKey(t *testing.T) {
	c := newCluster(t)
	v := c.withLock(t)
	none := strings.NewReader("")
	want(t, v.run(none, "unlock-key"), 1, "", "Error: no unlock key is set\n")
	want(t, v.run(none, "swarm", "unlock-key", "--rotate"), 1, "", "Error: cannot rotate because autolock is not turned on\n")
	v.key = newKey(t)
	first := v.key.Text()
	told := func(key string) string {
		return "To unlock a swarm manager after it restarts, run the `skep unlock`\ncommand and provide the following key:\n\n    " + key +
			"\n\nPlease remember to store this key in a password manager, since without it you\nwill not be able to restart the manager.\n"
	}
	if r := v.run(none, "unlock-key"); r.code != 0 || r.out != told(first) || r.err != "" {
		t.Errorf("%+v", r)
	}
	if r := v.run(none, "unlock-key", "-q"); r.code != 0 || r.out != first+"\n" {
		t.Errorf("%+v", r)
	}
	if r := v.run(none, "unlock-key", "--rotate"); r.code != 0 || r.out != "Successfully rotated manager unlock key.\n\n"+told(v.key.Text()) || v.key.Text() == first {
		t.Errorf("%+v", r)
	}
	v.refuse = fault.Unavailable("the answer was lost")
	want(t, v.run(none, "unlock-key", "--rotate"), 1, "", "The key may have been replaced all the same: skep unlock-key shows the one in force.")
	v.refuse = nil
	// swarm update tells the key of an autolock that it turns on.
	if r := v.run(none, "swarm", "update", "--autolock"); r.code != 0 || r.out != "Swarm updated.\n"+told(v.key.Text()) {
		t.Errorf("%+v", r)
	}
	if r := v.run(none, "swarm", "update", "--autolock=false"); r.code != 0 || r.out != "Swarm updated.\n" {
		t.Errorf("%+v", r)
	}
}

// What is typed is not shown.
func TestUnlockOnATerminal(t *testing.T) {
	c := newCluster(t)
	v := c.withLock(t)
	v.key = newKey(t)
	x := newTerminal(t)
	done := make(chan result, 1)
	go func() {
		env := c.env(&x.out, &x.out)
		env.In, env.CA = x.tty, func(context.Context) (*x509.Certificate, error) { return v.ca.Cert, nil }
		env.Now = time.Now
		code := Main(t.Context(), env, []string{"unlock"})
		done <- result{code: code}
	}()
	x.await(t, "Enter unlock key: ")
	for end := time.Now().Add(20 * time.Second); x.mode(t).Lflag&unix.ECHO != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the terminal shows what is typed")
		}
	}
	if _, err := x.master.WriteString(v.key.Text() + "\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-done:
		if r.code != 0 || !strings.Contains(x.out.String(), "Manager w1 unlocked.") || strings.Contains(x.out.String(), v.key.Text()[12:30]) {
			t.Errorf("%d %s", r.code, x.out.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if x.mode(t).Lflag&unix.ECHO == 0 {
		t.Error("the terminal stays silent")
	}
}

package vault

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/seal"
	"skep.dev/libs/subject"
)

// grown is a cluster whose managers come and go: m1 founded it.
type grown struct {
	*cluster
	t     *testing.T
	group []*skepv1.Manager
}

func startGrown(t *testing.T) *grown {
	c := &grown{cluster: start(t), t: t}
	c.joined(c.store, "m1", skepv1.NodeRole_NODE_ROLE_MANAGER)
	return c
}

// joined makes a node of the cluster, and, of a manager, a member of the group.
func (c *grown) joined(s *pki.Store, hostname string, role skepv1.NodeRole) {
	c.t.Helper()
	node := s.Identity().NodeID
	c.mu.Lock()
	c.nodes[node] = &skepv1.AdmitNodeRequest{NodeId: node, Role: role, Hostname: hostname}
	c.mu.Unlock()
	if role == skepv1.NodeRole_NODE_ROLE_MANAGER {
		c.group = append(c.group, &skepv1.Manager{NodeId: node, Hostname: hostname, Addr: hostname + ":2377", State: skepv1.ManagerState_MANAGER_STATE_VOTER})
		c.putManagers(c.t, &skepv1.ManagerSet{Managers: c.group})
	}
}

// conn is a connection of a service, or with kind "" of the agent, of a node.
func (c *grown) conn(kind, node string) *nats.Conn {
	c.t.Helper()
	if kind != "" {
		node = kind + "-" + node
	}
	nc, err := nats.Connect("", nats.InProcessServer(c.server), nats.CustomInboxPrefix(subject.Inbox(node)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// come runs the vault of a new manager on a directory.
func (c *grown) come(s *pki.Store, dir, hostname string) *manager {
	c.t.Helper()
	return c.begin(c.t, c.conn("vault", s.Identity().NodeID), dir, hostname, s, nil, nil)
}

// serves waits until a vault is open, and not locked or waiting.
func (m *manager) serves() {
	m.t.Helper()
	await(m.t, m.cfg.Hostname+" serves", func() error {
		select {
		case err := <-m.ended:
			m.ended <- nil
			m.t.Fatalf("the vault ended: %v", err)
		default:
		}
		if m.lock.locked() || m.idx.curveKey() == nil {
			return errors.New("not yet")
		}
		_, err := api.Call(ctx(m.t), m.c.nc, api.VaultOpen, &skepv1.Empty{})
		return err
	})
}

// The master key comes to a new manager, and rests there as the cluster has it rest.
func TestTheMasterKeyTravels(t *testing.T) {
	c := startGrown(t)
	told := c.events(t)
	c.mustSecret(t, "db", []byte("hunter2"))
	dir2, dir3 := filepath.Join(t.TempDir(), "vault"), filepath.Join(t.TempDir(), "vault")
	s2, s3 := c.vaultNode(t), c.vaultNode(t)
	c.joined(s2, "m2", skepv1.NodeRole_NODE_ROLE_MANAGER)
	m2 := c.come(s2, dir2, "m2")
	m2.serves()
	if got := rests(t, dir2); got != "clear" {
		t.Errorf("without autolock it rests %s", got)
	}
	if !bytes.Equal(m2.lock.master, c.vault.lock.master) {
		t.Fatal("it is another key")
	}
	if st, err := os.Stat(dir2); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	event := strings.Join(told(), "\n")
	if !strings.Contains(event, ".master-deliver ") || !strings.Contains(event, s2.Identity().NodeID) || strings.Contains(event, "hunter2") {
		t.Errorf("told %s", event)
	}
	// The vault that got it does what the first one does.
	if err := c.vault.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "m2 alone answers", func() error {
		_, err := api.Call(ctx(t), c.nc, api.SecretInspect, &skepv1.InspectSecretRequest{Ref: "db"})
		return err
	})
	m2.end()
	m2 = c.come(s2, dir2, "m2") // and has it on its disk
	m2.serves()

	// With autolock it is open when it comes, and its disk has the key sealed: it is locked when it is started again.
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k1, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	c.joined(s3, "m3", skepv1.NodeRole_NODE_ROLE_MANAGER)
	m3 := c.come(s3, dir3, "m3")
	m3.serves()
	if _, err := os.Lstat(filepath.Join(dir3, masterFile)); !errors.Is(err, os.ErrNotExist) || rests(t, dir3) != k1.ID() {
		t.Fatalf("with autolock it rests %s (%v)", rests(t, dir3), err)
	}
	m3.end()
	m3 = c.come(s3, dir3, "m3")
	<-m3.Ready()
	if !m3.lock.locked() {
		t.Fatal("it is open after a restart")
	}
	m3.mustUnlock(k1)
	// What happens to the unlock key reaches both.
	follow := func(want string) {
		t.Helper()
		for _, d := range []string{dir2, dir3} {
			await(t, "the disks follow", func() error {
				if got := rests(t, d); got != want {
					return fmt.Errorf("%s, want %s", got, want)
				}
				return nil
			})
		}
	}
	k2, err := c.shown(t, true)
	if err != nil {
		t.Fatal(err)
	}
	follow(k2.ID())
	if err := c.set(t, false); err != nil {
		t.Fatal(err)
	}
	follow("clear")
	// A disk that is wiped is no loss while another manager is there.
	m3.end()
	if err := os.RemoveAll(dir3); err != nil {
		t.Fatal(err)
	}
	m3 = c.come(s3, dir3, "m3")
	m3.serves()
	if got := rests(t, dir3); got != "clear" {
		t.Errorf("after the disk was wiped it rests %s", got)
	}
}

// vaultNode is a manager's certificate.
func (c *grown) vaultNode(t *testing.T) *pki.Store { return c.node(t, pki.Manager) }

// Who is not a manager, and what is not fresh, gets nothing.
func TestTheMasterKeyIsForManagers(t *testing.T) {
	c := startGrown(t)
	m, w := c.vaultNode(t), c.node(t, pki.Worker)
	c.joined(m, "m2", skepv1.NodeRole_NODE_ROLE_MANAGER)
	c.joined(w, "w1", skepv1.NodeRole_NODE_ROLE_WORKER)
	ask := func(s pki.Source, now time.Time) *seal.MasterAsk {
		t.Helper()
		a, err := seal.AskMaster(s, now)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		return a
	}
	send := func(node string, r *skepv1.DeliverRequest) (*skepv1.MasterReply, error) {
		return api.Call(ctx(t), c.conn("vault", node), api.VaultMaster.At(node), r)
	}
	denied := func(what, text, node string, r *skepv1.DeliverRequest) {
		t.Helper()
		reply, err := send(node, r)
		if !fault.Is(err, fault.CodeDenied) || !strings.Contains(err.Error(), text) || len(reply.GetSealed()) > 0 {
			t.Errorf("%s: %v", what, err)
		}
	}
	mid, wid := m.Identity().NodeID, w.Identity().NodeID
	good := ask(m, time.Now())
	reply, err := send(mid, good.Request)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := good.Open(m.Roots(), reply); err != nil || !bytes.Equal(got.Master, c.vault.lock.master) || bytes.Contains(reply.Sealed, got.Master) {
		t.Fatalf("%v", err)
	}
	denied("the same question again", "was answered before", mid, good.Request)
	denied("a worker", "its certificate is no manager's", wid, ask(w, time.Now()).Request)
	denied("a worker with a manager's question", "asked for with the certificate of "+mid, wid, ask(m, time.Now()).Request)
	denied("an old question", "set the clock there", mid, ask(m, time.Now().Add(-3*time.Hour)).Request)
	denied("a question of tomorrow", "set the clock there", mid, ask(m, time.Now().Add(24*time.Hour)).Request)
	denied("nothing", "certificate", mid, &skepv1.DeliverRequest{})
	deliver, err := seal.Ask(m, &skepv1.DeliverAsk{NodeId: mid, Reader: "x"})
	if err != nil {
		t.Fatal(err)
	}
	denied("what was signed for something else", "signature does not fit", mid, deliver)
	foreign := pkitest.Store(t, pkitest.NewCA(t), pki.Identity{NodeID: mid, Role: pki.Manager}, time.Hour)
	denied("another cluster's manager", "check the certificate", mid, ask(foreign, time.Now()).Request)
	user := c.userStore(t)
	denied("a user", "", user.Identity().NodeID, ask(user, time.Now()).Request)

	// State has the last word.
	c.mu.Lock()
	c.nodes[mid].Role = skepv1.NodeRole_NODE_ROLE_WORKER
	c.mu.Unlock()
	denied("who was demoted", "it is no manager", mid, ask(m, time.Now()).Request)
	c.mu.Lock()
	delete(c.nodes, mid)
	c.mu.Unlock()
	denied("who was removed", "it was removed from the cluster", mid, ask(m, time.Now()).Request)
	// And it does not answer for ever.
	for range mastersAtOnce {
		_, err = send(mid, ask(m, time.Now()).Request)
	}
	if !fault.Is(err, fault.CodeExhausted) {
		t.Errorf("again and again: %v", err)
	}
}

// userStore is a person's certificate.
func (c *grown) userStore(t *testing.T) *pki.Store {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := c.vault.idx.authority().Sign(csr, pki.Identity{NodeID: "user-eve", Role: pki.User, UserRole: "admin"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pki.Memory(cert, key, c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A manager without a key waits for somebody to give it, says so to who asks, and goes on when it comes.
func TestWaitForTheMasterKey(t *testing.T) {
	c := startGrown(t)
	id := c.alone(t)
	first := c.manager(t, c.dir, "m1", id, nil, nil)
	if err := c.set(t, true); err != nil {
		t.Fatal(err)
	}
	k, err := c.shown(t, false)
	if err != nil {
		t.Fatal(err)
	}
	s2 := c.vaultNode(t)
	c.joined(s2, "m2", skepv1.NodeRole_NODE_ROLE_MANAGER)
	first.end()
	m2 := c.come(s2, filepath.Join(t.TempDir(), "vault"), "m2")
	<-m2.Ready()
	await(t, "it says why", func() error {
		_, err := api.Call(ctx(t), c.nc, api.SecretList, &skepv1.ListSecretsRequest{})
		if !fault.Is(err, fault.CodeUnavailable) || !strings.Contains(fmt.Sprint(err), "m2 has no master key yet") {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	first = c.manager(t, c.dir, "m1", id, nil, nil) // locked
	if !first.lock.locked() || !m2.lock.locked() {
		t.Fatal("one of them is open")
	}
	first.mustUnlock(k)
	m2.serves()
	if got := rests(t, m2.lock.disk.dir); got != k.ID() {
		t.Errorf("it rests %s", got)
	}
}

// A manager that is alone has nobody to ask; one of another cluster is not given to.
func TestNobodyHasTheMasterKey(t *testing.T) {
	c := startGrown(t)
	_ = c.vault.Close() // always nil
	m := c.come(c.store, filepath.Join(t.TempDir(), "vault"), "m1")
	err := <-m.ended
	m.ended <- nil
	if err == nil || !strings.Contains(err.Error(), "neither master.key nor master.sealed") || !strings.Contains(err.Error(), "restore") {
		t.Errorf("alone: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "vault")
	if _, err := New(Config{NC: c.nc, Dir: dir}); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("without a certificate: %v", err)
	}
}

// A crash before, between or after the writes of the key leaves a directory that the next start gets right.
func TestKilledWhileItTakesTheKey(t *testing.T) {
	c := startGrown(t)
	s2 := c.vaultNode(t)
	c.joined(s2, "m2", skepv1.NodeRole_NODE_ROLE_MANAGER)
	dir := filepath.Join(t.TempDir(), "vault")
	died := errors.New("died")
	v := c.begin(t, c.conn("vault", s2.Identity().NodeID), dir, "m2", s2, nil, func(string) error { return died })
	await(t, "it dies where it would write", func() error {
		if _, err := os.Stat(dir); err != nil {
			return err
		}
		return nil
	})
	v.end()
	if _, err := os.Lstat(filepath.Join(dir, masterFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it wrote: %v", err)
	}
	v = c.come(s2, dir, "m2")
	v.serves()
	if got := rests(t, dir); got != "clear" {
		t.Errorf("it rests %s", got)
	}
}

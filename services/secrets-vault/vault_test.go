package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/join"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// cluster is a broker with TLS as a manager's, the vault under test and a stand-in for the state service. (That the
// broker keeps strangers to the join endpoint is tested with the bus.)
type cluster struct {
	boot   *Bootstrapped
	dir    string
	addr   string
	nc     *nats.Conn
	server *server.Server
	vault  *Service
	store  *pki.Store // the manager's, as the broker has it

	mu     sync.Mutex
	nodes  map[string]*skepv1.AdmitNodeRequest
	expiry time.Duration
	refuse error
	files  files
}

func start(t testing.TB) *cluster {
	t.Helper()
	c := startWith(t, BootstrapParams{})
	c.vault = c.runVault(t, nil)
	return c
}

// startWith is all but the vault.
func startWith(t testing.TB, p BootstrapParams) *cluster {
	t.Helper()
	c := &cluster{dir: filepath.Join(t.TempDir(), "vault"), nodes: map[string]*skepv1.AdmitNodeRequest{},
		files: files{uses: map[string][]*skepv1.SecretUse{}, tasks: map[string][]*skepv1.TaskFiles{}}}
	var err error
	p.Dir, p.Hosts = c.dir, []string{"127.0.0.1"}
	if c.boot, err = Bootstrap(p); err != nil {
		t.Fatal(err)
	}
	store, err := pki.Memory(c.boot.Cert, c.boot.Key, c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "m1", Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(),
		TLSConfig: pki.ServerTLS(store), TLSHandshakeFirst: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker takes no connections")
	}
	c.addr, c.server, c.store = s.Addr().String(), s, store
	if c.nc, err = nats.Connect("", nats.InProcessServer(s), nats.CustomInboxPrefix(subject.Inbox("door-m1"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.nc.Close)
	js, err := jetstream.New(c.nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Ensure(ctx(t), js, 1); err != nil {
		t.Fatal(err)
	}
	c.serveState(t)
	return c
}

func (c *cluster) runVault(t testing.TB, now func() time.Time) *Service {
	t.Helper()
	v, err := New(Config{
		NC: c.nc, Log: zaptest.NewLogger(t), Dir: c.dir, NodeID: c.boot.NodeID, Now: now,
		ManagerAddrs: func() []string { return []string{c.addr} },
	})
	if err != nil {
		t.Fatal(err)
	}
	c.serve(t, v)
	return v
}

// serve runs a vault until the test ends.
func (c *cluster) serve(t testing.TB, v *Service) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- v.Run(context.Background()) }()
	t.Cleanup(func() {
		_ = v.Close() // always nil
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-v.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("the vault ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the vault is not ready")
	}
}

func (c *cluster) serveState(t testing.TB) {
	t.Helper()
	srv, err := rpc.NewServer(c.nc, rpc.Config{Name: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() }) // the connection may be closed already
	err = errors.Join(
		api.Handle(srv, api.NodeAdmit, func(_ context.Context, r *skepv1.AdmitNodeRequest) (*skepv1.NodeReply, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.refuse != nil {
				return nil, c.refuse
			}
			c.nodes[r.NodeId] = r
			return &skepv1.NodeReply{}, nil
		}),
		api.Handle(srv, api.NodeInspect, func(_ context.Context, r *skepv1.Ref) (*skepv1.NodeReply, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			n := c.nodes[r.Ref]
			if n == nil {
				return nil, fault.NotFound("no such node: %s", r.Ref)
			}
			return &skepv1.NodeReply{Node: &skepv1.Node{Meta: &skepv1.Meta{Id: n.NodeId}, Role: n.Role, Witness: n.Witness, Spec: &skepv1.NodeSpec{Role: n.Role}, Description: &skepv1.NodeDescription{Hostname: n.Hostname}}}, nil
		}),
		api.Handle(srv, api.ClusterInspect, func(context.Context, *skepv1.Empty) (*skepv1.ClusterReply, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return &skepv1.ClusterReply{Cluster: &skepv1.Cluster{Spec: &skepv1.ClusterSpec{NodeCertExpiry: durationpb.New(c.expiry)}}}, nil
		}),
		api.Handle(srv, api.FilesUses, func(_ context.Context, r *skepv1.SecretUsesRequest) (*skepv1.SecretUsesReply, error) {
			c.files.mu.Lock()
			defer c.files.mu.Unlock()
			if c.files.usesErr != nil {
				return nil, c.files.usesErr
			}
			out := &skepv1.SecretUsesReply{Uses: map[string]*skepv1.SecretUses{}}
			for _, id := range r.Ids {
				out.Uses[id] = &skepv1.SecretUses{Uses: c.files.uses[id]}
			}
			return out, nil
		}),
		api.Handle(srv, api.FilesOfTasks, func(_ context.Context, r *skepv1.TaskFilesRequest) (*skepv1.TaskFilesReply, error) {
			c.files.mu.Lock()
			defer c.files.mu.Unlock()
			return &skepv1.TaskFilesReply{Tasks: c.files.tasks[r.NodeId]}, nil
		}),
		api.Handle(srv, api.FilesRoll, func(_ context.Context, r *skepv1.RollSecretRequest) (*skepv1.RollSecretReply, error) {
			c.files.mu.Lock()
			roll := c.files.roll
			c.files.mu.Unlock()
			if roll == nil {
				return &skepv1.RollSecretReply{}, nil
			}
			services, err := roll(r)
			return &skepv1.RollSecretReply{Services: services}, err
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func ctx(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (c *cluster) token(t *testing.T, role skepv1.NodeRole, rotate bool) string {
	t.Helper()
	var r skepv1.JoinTokenReply
	if err := rpc.Call(ctx(t), c.nc, subject.API("token", "get"), &skepv1.JoinTokenRequest{Role: role, Rotate: rotate}, &r); err != nil {
		t.Fatal(err)
	}
	return r.Token
}

func TestJoinGivesACertificateOfTheTokensRole(t *testing.T) {
	c := start(t)
	for _, x := range []struct {
		token string
		role  pki.Role
	}{{c.boot.WorkerToken, pki.Worker}, {c.boot.ManagerToken, pki.Manager}} {
		r, err := join.Join(ctx(t), c.addr, x.token, join.Params{Hostname: "w1", Addr: "10.0.0.7", Availability: skepv1.Availability_AVAILABILITY_DRAIN})
		if err != nil {
			t.Fatal(err)
		}
		s, err := pki.Create(filepath.Join(t.TempDir(), "certs"), r.Cert, r.Key, r.CA)
		if err != nil {
			t.Fatal(err)
		}
		want := pki.Identity{NodeID: r.Reply.NodeId, Role: x.role, ClusterID: c.boot.ClusterID}
		if got := s.Identity(); got.NodeID != want.NodeID || got.Role != want.Role || got.ClusterID != want.ClusterID || !id.Valid(got.NodeID) {
			t.Fatalf("certified %+v, want %+v", got, want)
		}
		c.mu.Lock()
		n := c.nodes[r.Reply.NodeId]
		c.mu.Unlock()
		if n == nil || n.Hostname != "w1" || n.Addr != "10.0.0.7" || n.Availability != skepv1.Availability_AVAILABILITY_DRAIN || pkiRole(n.Role) != x.role {
			t.Fatalf("state admitted %v", n)
		}
		// What it got is what it needs: a connection as that node.
		nc, err := nats.Connect("tls://"+c.addr, nats.Secure(pki.ClientTLS(s)), nats.TLSHandshakeFirst())
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
}

func TestTokensShownAndRotated(t *testing.T) {
	c := start(t)
	w, m := skepv1.NodeRole_NODE_ROLE_WORKER, skepv1.NodeRole_NODE_ROLE_MANAGER
	if got := c.token(t, w, false); got != c.boot.WorkerToken {
		t.Fatal("the worker token differs from what init printed")
	}
	next := c.token(t, w, true)
	if next == c.boot.WorkerToken || c.token(t, w, false) != next || c.token(t, m, false) != c.boot.ManagerToken {
		t.Fatal("rotation did not change exactly the worker token")
	}
	_, err := join.Join(ctx(t), c.addr, c.boot.WorkerToken, join.Params{Hostname: "w1"})
	if err == nil || err.Error() != "the join token was rotated; ask a manager for the current one: skep join-token worker" {
		t.Fatalf("joined with the old token: %v", err)
	}
	c.token(t, m, true)
	_, err = join.Join(ctx(t), c.addr, c.boot.ManagerToken, join.Params{Hostname: "m2"})
	if err == nil || err.Error() != "the join token was rotated; ask a manager for the current one: skep join-token manager" {
		t.Fatalf("joined with the old token: %v", err)
	}
	if _, err := join.Join(ctx(t), c.addr, next, join.Params{Hostname: "w1"}); err != nil {
		t.Fatal(err)
	}
	// Many rotate at once: all succeed, the last one is what is shown.
	var wg sync.WaitGroup
	seen := make(chan string, 8)
	for range cap(seen) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var r skepv1.JoinTokenReply
			if err := rpc.Call(ctx(t), c.nc, subject.API("token", "get"), &skepv1.JoinTokenRequest{Role: w, Rotate: true}, &r); err != nil {
				t.Error(err)
			}
			seen <- r.Token
		}()
	}
	wg.Wait()
	close(seen)
	all := map[string]bool{}
	for s := range seen {
		all[s] = true
	}
	if len(all) != cap(seen) || !all[c.token(t, w, false)] {
		t.Fatalf("%d distinct tokens of %d rotations", len(all), cap(seen))
	}
}

func TestJoinErrorsAreExact(t *testing.T) {
	c := start(t)
	other, err := Bootstrap(BootstrapParams{Dir: filepath.Join(t.TempDir(), "vault")})
	if err != nil {
		t.Fatal(err)
	}
	wrong := c.boot.WorkerToken[:len(c.boot.WorkerToken)-25] + pki.NewSecret()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	closed := silent(t, func(c net.Conn) { c.Close() })
	banner := silent(t, func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n") })
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	clock := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }

	for name, x := range map[string]struct {
		addr, token string
		now         func() time.Time
		want        string
	}{
		"malformed":       {c.addr, "SKEP-1-abc", nil, "malformed join token: it has 3 parts instead of 4 (SKEP-1-<digest>-<secret>); copy it again from: skep join-token worker"},
		"cut short":       {c.addr, c.boot.WorkerToken[:80], nil, "malformed join token: its secret has 22 characters instead of 25; copy it again from: skep join-token worker"},
		"swarm token":     {c.addr, "SWMTKN-1-xyz", nil, "malformed join token: it is a Docker Swarm token (SWMTKN-…), skep's begin with SKEP-1-; copy it again from: skep join-token worker"},
		"wrong secret":    {c.addr, wrong, nil, "the join token is wrong: it was copied with a mistake, or rotated long ago; ask a manager for the current one: skep join-token worker"},
		"other cluster":   {c.addr, other.WorkerToken, nil, "join " + c.addr + ": the manager there belongs to another cluster than the join token; use the address of a manager of the token's cluster, or get a token from this one: skep join-token worker"},
		"clock behind":    {c.addr, c.boot.WorkerToken, clock(-90 * time.Minute), "this machine's clock is 90 minutes behind the cluster's: set it (e.g. systemctl restart systemd-timesyncd) and join again"},
		"clock ahead":     {c.addr, c.boot.WorkerToken, clock(400*24*time.Hour + time.Hour), "this machine's clock is 400 days ahead of the cluster's: set it (e.g. systemctl restart systemd-timesyncd) and join again"},
		"refused":         {gone.Addr().String(), c.boot.WorkerToken, nil, "join " + gone.Addr().String() + ": connection refused: nothing listens there; is it a manager's address, and does skep run on it?"},
		"plain HTTP":      {plain.Listener.Addr().String(), c.boot.WorkerToken, nil, "what listens there is not a skep manager"},
		"HTTPS":           {web.Listener.Addr().String(), c.boot.WorkerToken, nil, "what listens there is not a skep manager"},
		"hangs up":        {closed, c.boot.WorkerToken, nil, "it is probably not a skep manager"},
		"SSH":             {banner, c.boot.WorkerToken, nil, "what listens there is not a skep manager"},
		"no such host":    {"no-such-host.invalid", c.boot.WorkerToken, nil, "join no-such-host.invalid:2377: no such host: no-such-host.invalid"},
		"not an address":  {"a:b:c", c.boot.WorkerToken, nil, `join "a:b:c": that is not HOST or HOST:PORT`},
		"no address":      {"", c.boot.WorkerToken, nil, "join: the address of a manager is missing: skep join --token TOKEN HOST[:2377]"},
		"an hour behind":  {c.addr, c.boot.WorkerToken, clock(-time.Hour), ""},
		"an hour ahead":   {c.addr, c.boot.WorkerToken, clock(time.Hour), ""},
		"space around it": {c.addr, " " + c.boot.WorkerToken + "\n", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := join.Join(ctx(t), x.addr, x.token, join.Params{Hostname: "w1", Now: x.now})
			switch {
			case x.want == "" && err != nil:
				t.Fatal(err)
			case x.want == "":
			case err == nil:
				t.Fatalf("joined; want: %s", x.want)
			case !strings.Contains(err.Error(), x.want):
				t.Fatalf("got:  %v\nwant: %s", err, x.want)
			case strings.Contains(err.Error(), x.token):
				t.Fatal("the error repeats the token")
			}
		})
	}
	c.mu.Lock()
	c.refuse = fault.Exhausted("the pool of node subnets is used up")
	c.mu.Unlock()
	if _, err := join.Join(ctx(t), c.addr, c.boot.WorkerToken, join.Params{Hostname: "w1"}); err == nil || err.Error() != "the pool of node subnets is used up" {
		t.Fatalf("state's refusal became %v", err)
	}
}

// silent listens and gives every connection to f.
func silent(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			f(c)
		}
	}()
	return l.Addr().String()
}

// The token must not reach a server that is not of its cluster, whatever it shows.
func TestTokenIsNotSentToAnotherCluster(t *testing.T) {
	c := start(t)
	ca := pkitest.NewCA(t)
	rogue := pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Manager}, time.Hour)
	// It appends the true CA, which is public, to its own chain.
	show := *rogue.Certificate()
	trueCA, err := pki.ParseCertificate(c.boot.CA)
	if err != nil {
		t.Fatal(err)
	}
	show.Certificate = append(show.Certificate[:2:2], trueCA.Raw)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{show}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan []byte, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(got)
				return
			}
			b, _ := io.ReadAll(conn) // ends with the client's refusal
			conn.Close()
			got <- b
		}
	}()
	if _, err := join.Join(ctx(t), l.Addr().String(), c.boot.WorkerToken, join.Params{}); err == nil {
		t.Fatal("joined a rogue")
	}
	l.Close()
	for b := range got {
		if len(b) != 0 {
			t.Fatalf("the rogue was told %q", b)
		}
	}
}

func TestNothingIsStoredInClear(t *testing.T) {
	c := start(t)
	c.token(t, skepv1.NodeRole_NODE_ROLE_WORKER, true)
	current := c.token(t, skepv1.NodeRole_NODE_ROLE_WORKER, false)
	for _, k := range []string{keyCA, tokenKey(pki.Worker), tokenKey(pki.Manager)} {
		e, err := c.vault.bucket.Get(ctx(t), k)
		if err != nil {
			t.Fatal(err)
		}
		for _, clear := range []string{"PRIVATE", "BEGIN", "secret", current[58:], c.boot.WorkerToken[58:], c.boot.ManagerToken[58:]} {
			if bytes.Contains(e.Value, []byte(clear)) {
				t.Fatalf("%s holds %q in clear", k, clear)
			}
		}
	}
	// What the directory keeps is the master key alone, for its owner alone.
	files, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || files[0].Name() != masterFile {
		t.Fatalf("the vault's directory holds %v", files)
	}
	for path, mode := range map[string]os.FileMode{c.dir: 0o700 | os.ModeDir, filepath.Join(c.dir, masterFile): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode() != mode {
			t.Fatalf("%s has mode %v, %v", path, st.Mode(), err)
		}
	}
	// One record does not pass for another.
	e, err := c.vault.bucket.Get(ctx(t), tokenKey(pki.Manager))
	if err != nil {
		t.Fatal(err)
	}
	var r tokenRecord
	if err := c.vault.idx.seal.open(tokenKey(pki.Worker), e.Value, &r); err == nil {
		t.Fatal("the manager token opens as the worker token")
	}
	// A second vault on the same keys serves the same CA; one with another master key does not start.
	v := c.runVault(t, nil)
	if !v.idx.authority().Cert.Equal(c.vault.idx.authority().Cert) {
		t.Fatal("two vaults, two CAs")
	}
	dir := t.TempDir()
	if err := (disk{dir: dir}).writeClear(bytes.Repeat([]byte{1}, masterSize)); err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{NC: c.nc, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(ctx(t)); err == nil || !strings.Contains(err.Error(), "was the master key in the data directory replaced?") {
		t.Fatalf("a vault with another master key: %v", err)
	}
	if _, err := Bootstrap(BootstrapParams{Dir: c.dir}); err == nil || !strings.Contains(err.Error(), "holds a cluster's keys already") {
		t.Fatalf("a second init: %v", err)
	}
}

// How often a connection may ask is the broker's limit.
func TestWrongTokensAreLimited(t *testing.T) {
	c := start(t)
	wrong := c.boot.WorkerToken[:len(c.boot.WorkerToken)-25] + pki.NewSecret()
	_, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	try := func(token string) error {
		return rpc.Call(ctx(t), c.nc, subject.Join("join-"+id.New()), &skepv1.JoinRequest{Token: token, CsrDer: csr}, nil)
	}
	if err := try(wrong); !fault.Is(err, fault.CodeDenied) {
		t.Fatal(err)
	}
	limited := false
	for i := 0; !limited && i < 200; i++ {
		limited = fault.Is(try(wrong), fault.CodeExhausted)
	}
	if !limited {
		t.Fatal("wrong tokens are answered without a limit")
	}
	if err := try(c.boot.WorkerToken); err != nil {
		t.Fatalf("wrong tokens lock out the right one: %v", err)
	}
}

func TestRenewalRunsUnattended(t *testing.T) {
	c := start(t)
	c.mu.Lock()
	c.expiry = 3 * time.Second
	c.mu.Unlock()
	r, err := join.Join(ctx(t), c.addr, c.boot.WorkerToken, join.Params{Hostname: "w1"})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "certs")
	store, err := pki.Create(dir, r.Cert, r.Key, r.CA)
	if err != nil {
		t.Fatal(err)
	}
	first := store.Leaf()
	if life := time.Until(first.NotAfter); life > 3*time.Second {
		t.Fatalf("the cluster's certificate life was not used: %v", life)
	}
	nc, err := nats.Connect("tls://"+c.addr, nats.Secure(pki.ClientTLS(store)), nats.TLSHandshakeFirst(), nats.CustomInboxPrefix(subject.Inbox(r.Reply.NodeId)))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	renewed := make(chan struct{}, 16)
	rctx, stop := context.WithCancel(ctx(t))
	ended := make(chan error, 1)
	go func() {
		r := &join.Renewal{NC: nc, Store: store, Log: zaptest.NewLogger(t), Renewed: func() { renewed <- struct{}{} }}
		ended <- r.Run(rctx)
	}()
	for range 3 {
		select {
		case <-renewed:
		case <-time.After(30 * time.Second):
			t.Fatal("not renewed")
		}
	}
	if store.Leaf().Equal(first) || store.Identity().NodeID != r.Reply.NodeId {
		t.Fatal("the certificate in use is not the renewed one")
	}
	onDisk, err := pki.Open(dir)
	if err != nil || !onDisk.Leaf().NotAfter.After(first.NotAfter) {
		t.Fatalf("the certificate on disk is not the renewed one: %v", err)
	}
	// Removed: the next renewal is refused and the loop says so.
	c.mu.Lock()
	delete(c.nodes, r.Reply.NodeId)
	c.mu.Unlock()
	select {
	case err := <-ended:
		if !fault.Is(err, fault.CodeDenied) || !strings.Contains(err.Error(), "was removed from the cluster") {
			t.Fatalf("renewal of a removed node: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a removed node goes on renewing")
	}
	stop()
}

func TestUserCertificates(t *testing.T) {
	c := start(t)
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	var r skepv1.IssueUserReply
	req := &skepv1.IssueUserRequest{Name: "ada", Role: pki.Viewer, CsrDer: csr, Expiry: durationpb.New(time.Hour)}
	if err := rpc.Call(ctx(t), c.nc, subject.API("user", "issue"), req, &r); err != nil {
		t.Fatal(err)
	}
	s, err := pki.Memory(r.CertPem, key, r.CaPem)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Identity(); got.NodeID != "user-ada" || got.Role != pki.User || got.UserRole != pki.Viewer {
		t.Fatalf("certified %+v", got)
	}
	for _, bad := range []*skepv1.IssueUserRequest{
		{Name: "a.b", Role: pki.Viewer, CsrDer: csr}, {Name: "", Role: pki.Viewer, CsrDer: csr}, {Name: "ada", Role: "root", CsrDer: csr},
		{Name: "ada", Role: pki.Admin, CsrDer: csr[:40]}, {Name: "ada", Role: pki.Admin, CsrDer: csr, Expiry: durationpb.New(-1)},
	} {
		if err := rpc.Call(ctx(t), c.nc, subject.API("user", "issue"), bad, nil); !fault.Is(err, fault.CodeInvalid) && !fault.Is(err, fault.CodeUsage) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

package conn

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

func TestWithServers(t *testing.T) {
	many := func(from, to int) (out []string) {
		for i := from; i <= to; i++ {
			out = append(out, fmt.Sprintf("h%d:1", i))
		}
		return out
	}
	for _, c := range []struct {
		name   string
		had    []string
		worked string
		told   []string
		want   []string
	}{
		{"nothing new", many(1, 3), "h1:1", many(1, 3), many(1, 3)},
		{"a lone server tells of nobody", many(1, 1), "h1:1", nil, many(1, 1)},
		{"the second one worked", many(1, 3), "h2:1", many(1, 3), []string{"h2:1", "h1:1", "h3:1"}},
		{"two joined", many(1, 1), "h1:1", []string{"h3:1", "h1:1", "h2:1"}, many(1, 3)},
		{"seen from outside", []string{"public:1"}, "public:1", many(1, 2), []string{"public:1", "h1:1", "h2:1"}},
		{"too many: those go that nobody told of", many(1, 8), "h8:1", many(7, 9), []string{"h8:1", "h1:1", "h2:1", "h3:1", "h4:1", "h5:1", "h7:1", "h9:1"}},
		{"the one that worked stays, whatever is told", many(1, 8), "h8:1", many(20, 40), append([]string{"h8:1"}, many(20, 26)...)},
		{"no addresses", many(1, 1), "h1:1", []string{"", ":", "h2", ":1"}, many(1, 1)},
	} {
		if got := withServers(c.had, c.worked, c.told); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// A context with one address learns the other managers, and reaches them when the first one hangs or is gone.
func TestAContextLearnsTheManagers(t *testing.T) {
	ca := pkitest.NewCA(t)
	var srvs []*server.Server
	for i := range 3 {
		o := &server.Options{
			ServerName: fmt.Sprint("m", i), Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, TLSHandshakeFirst: true, TLSTimeout: 5,
			TLSConfig: pki.ServerTLS(pkitest.Store(t, ca, pki.Identity{NodeID: fmt.Sprint("node", i), Role: pki.Manager}, time.Hour)),
			Cluster:   server.ClusterOpts{Name: "skep", Host: "127.0.0.1", Port: -1},
		}
		for _, s := range srvs {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: s.ClusterAddr().String()})
		}
		srvs = append(srvs, broker(t, o))
	}
	for end := time.Now().Add(20 * time.Second); slices.ContainsFunc(srvs, func(s *server.Server) bool { return s.NumRoutes() < 2 }); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the brokers do not see each other")
		}
	}
	cert, key := pkitest.Certify(t, ca, pki.Identity{NodeID: "user-anna", Role: pki.User, UserRole: pki.Admin}, time.Hour)
	s := Store{t.TempDir()}
	first := srvs[0].Addr().String()
	if err := s.Create(Context{Name: "prod", Addr: first, Cert: string(cert), Key: string(key), CA: string(ca.CertPEM())}); err != nil {
		t.Fatal(err)
	}
	dial := func() (server string, took time.Duration) {
		t.Helper()
		began := time.Now()
		nc, err := Dial(t.Context(), Options{Context: "prod", Store: s})
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		return nc.ConnectedServerName(), time.Since(began)
	}
	var c Context
	unlearnt := func(srv *server.Server) bool { return !slices.Contains(c.Servers(), srv.Addr().String()) }
	for end := time.Now().Add(20 * time.Second); ; { // the brokers may not have told one another yet where clients reach them
		if name, _ := dial(); name != "m0" {
			t.Fatalf("connected to %s", name)
		}
		var err error
		if c, err = s.Load("prod"); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(srvs, unlearnt) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not all were learnt: %v", c.Servers())
		}
	}
	if fi, err := os.Stat(s.path("prod")); err != nil || fi.Mode().Perm() != 0o600 || c.Addr != first {
		t.Errorf("%v %v %s", fi.Mode(), err, c.Addr)
	}

	// In the place of the first one hangs something that only takes connections.
	srvs[0].Shutdown()
	srvs[0].WaitForShutdown()
	l, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name, took := dial()
	t.Logf("connected to %s after %v although one hangs", name, took)
	if name == "m0" || took > 3*time.Second {
		t.Errorf("connected to %s after %v", name, took)
	}
	if c, err = s.Load("prod"); err != nil || c.Addr == first || !slices.Contains(c.Others, first) {
		t.Errorf("the one that works does not come first: %v %v", c.Servers(), err)
	}
}

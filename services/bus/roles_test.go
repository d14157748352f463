package bus

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

var here = subject.From(netip.MustParseAddr("127.0.0.1"))

func userStore(t testing.TB, ca *pki.CA, name, role string) *pki.Store {
	return pkitest.Store(t, ca, pki.Identity{NodeID: subject.Person(name), Role: pki.User, UserRole: role}, time.Hour)
}

// TestRoles goes through every verb there is for every role: who may ask it in his own name, and who on the bare subject,
// which proves nothing. What is allowed and who is refused is tried on real connections, the forgeries of every verb on the
// rules and those of two on connections.
func TestRoles(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	node := id.New()
	may := map[string][]api.Callers{
		pki.Viewer:   {api.Viewers},
		pki.Operator: {api.Viewers, api.Operators},
		pki.Admin:    {api.Viewers, api.Operators, api.Admins},
	}
	for role, callers := range may {
		p := dial(t, b, userStore(t, ca, "u", role), nats.Name(role))
		rules := Permissions(Role(role), "user-u", here).Publish
		var good []string
		for _, v := range api.All() {
			verb := strings.Replace(v.Subject, "*", node, 1)
			allowed := slices.Contains(callers, v.Callers)
			tried := v == api.ServiceRemove.Verb || v == api.ServiceList.Verb
			for subj, want := range map[string]bool{
				subject.By(verb, "user-u", here): allowed,
				verb:                             allowed && v.Effect == api.Reads,
				subject.By(verb, "user-v", here): false,
				subject.By(verb, "user-u", subject.From(netip.MustParseAddr("1.2.3.4"))): false,
				subject.By(verb, "user-u", subject.Local):                                false,
				subject.By(verb, subject.LocalRoot, subject.Local):                       false,
				verb + ".user-u": false,
				subject.By(subject.By(verb, "user-v", here), "user-u", here): false,
			} {
				for _, on := range subject.WithNear([]string{subj}) {
					if got := matches(rules.Allow, on) && !matches(rules.Deny, on); got != want {
						t.Errorf("%s may publish to %s: %v, want %v", role, on, got, want)
					}
				}
				if want {
					good = append(good, subj)
				} else if tried || subj == subject.By(verb, "user-u", here) {
					p.mustNotPublish(subj, nil)
				}
			}
		}
		q := p.fresh()
		for _, subj := range good {
			if err := q.Publish(subj, nil); err != nil {
				t.Fatal(err)
			}
		}
		if q.refused() {
			t.Errorf("%s: one of what is allowed is refused: %v", role, q.LastError())
		}
		q.Close()
	}
}

func matches(patterns []string, subj string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return subject.Matches(p, subj) })
}

// TestRolesOfRoot: local root asks on bare subjects alone, everything that is for people.
func TestRolesOfRoot(t *testing.T) {
	allow := Permissions(RoleLocal, subject.LocalRoot, subject.Local).Publish.Allow
	may := func(subj string) bool { return matches(allow, subj) }
	for _, v := range api.All() {
		verb := strings.Replace(v.Subject, "*", "n", 1)
		people := v.Callers == api.Viewers || v.Callers == api.Operators || v.Callers == api.Admins
		if may(verb) != people || may(subject.By(verb, "user-ada", here)) {
			t.Errorf("root may ask %s: %v, in a user's name: %v", verb, may(verb), may(subject.By(verb, "user-ada", here)))
		}
	}
}

// TestWhoAnswersMayListen: whoever answers what people ask may listen to both forms of it.
func TestWhoAnswersMayListen(t *testing.T) {
	node := id.New()
	for _, v := range api.All() {
		if mayAsk(RoleAdmin, v.Callers) {
			role, ok := map[string]Role{
				"state": "state", "scheduler": "scheduler", "secrets-vault": "vault", "ingress-mesh": "mesh", "health-monitor": "health", "node-agent": RoleAgent, "bus": RoleManager,
			}[v.Service]
			p := Permissions(role, node, subject.Local)
			for _, s := range []string{v.Subject, subject.ByAnybody(v.Subject)} {
				s = strings.Replace(s, "skep.v1.node.*", "skep.v1.node."+node, 1)
				if !ok || p != nil && p.Subscribe != nil && !matches(p.Subscribe.Allow, strings.ReplaceAll(s, "*", "x")) {
					t.Errorf("%s answers %s and may not listen to it", v.Service, s)
				}
			}
		}
	}
}

// whoAsks serves a verb that answers who asked, and from where.
func whoAsks(t testing.TB, b *Bus) {
	t.Helper()
	nc, err := b.InProcess("state")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "skep-state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	who := func(ctx context.Context, _ *skepv1.Ref) (*skepv1.ServiceReply, error) {
		return &skepv1.ServiceReply{Warnings: []string{rpc.Asker(ctx), rpc.AskerAddress(ctx)}}, nil
	}
	if err := api.Handle(srv, api.ServiceInspect, who); err != nil {
		t.Fatal(err)
	}
	if err := api.Handle(srv, api.ServiceRemove, func(ctx context.Context, _ *skepv1.RemoveServiceRequest) (*skepv1.ServiceReply, error) {
		return who(ctx, nil)
	}); err != nil {
		t.Fatal(err)
	}
}

// TestWhoAsksIsProven: a service is told who asks, and the address the broker sees; what the asker writes into a request,
// its reply included, changes nothing.
func TestWhoAsksIsProven(t *testing.T) {
	ca := pkitest.NewCA(t)
	b := run(t, lone(t, ca, id.New()))
	whoAsks(t, b)
	local, err := nats.Connect("", nats.InProcessServer(inProcess{b}), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	sched, err := b.InProcess("scheduler")
	if err != nil {
		t.Fatal(err)
	}
	defer sched.Close()
	ada, vic := dial(t, b, userStore(t, ca, "ada", pki.Admin)), dial(t, b, userStore(t, ca, "vic", pki.Viewer))
	for _, c := range []struct {
		nc   *nats.Conn
		want string
	}{{ada.Conn, "user-ada 127.0.0.1"}, {vic.Conn, "user-vic 127.0.0.1"}, {local, "root local"}, {sched, "scheduler "}} {
		r, err := api.Call(within(t), c.nc, api.ServiceInspect, &skepv1.Ref{Ref: "web"})
		if err != nil {
			t.Fatalf("%s: %v", c.want, err)
		}
		if got := strings.Join(r.Warnings, " "); got != c.want {
			t.Errorf("%q asked, want %q", got, c.want)
		}
	}

	// Into somebody else's inbox: a change is not made, whoever it is that listens.
	heard, err := sched.SubscribeSync("_INBOX_*.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := sched.Flush(); err != nil {
		t.Fatal(err)
	}
	remove := subject.By(api.ServiceRemove.Subject(), "user-ada", here)
	for _, forged := range []string{"_INBOX_user-bob.x", "_INBOX_local-root.x", "_INBOX_scheduler-n.x", "_INBOX.x", "_INBOX_viewer.user-bob.x"} {
		if err := ada.PublishRequest(remove, forged, nil); err != nil {
			t.Fatal(err)
		}
	}
	// A bare reading request, as natscli sends it, names nobody, whatever inbox it gives.
	bare, err := ada.Request(api.ServiceInspect.Subject(), []byte(`{"ref":"web"}`), 10*time.Second)
	if err != nil || !strings.Contains(string(bare.Data), rpc.Unknown) {
		t.Errorf("a bare request: %v", err)
	}
	own := ada.NewRespInbox()
	sub, err := ada.SubscribeSync(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := ada.PublishRequest(remove, own, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.NextMsg(10 * time.Second); err != nil {
		t.Fatalf("the honest request: %v", err)
	}
	if err := sched.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := heard.NextMsg(time.Millisecond)
		if err != nil {
			break
		}
		if !strings.HasPrefix(m.Subject, "_INBOX_user-ada.") {
			t.Errorf("an answer went to %s", m.Subject)
		}
	}
}

// BenchmarkRequest is a request of a user over TLS, as it was (bare) and with the asker's name, and what connecting costs.
func BenchmarkRequest(b *testing.B) {
	ca := pkitest.NewCA(b)
	bus := run(b, lone(b, ca, id.New()))
	whoAsks(b, bus)
	store := userStore(b, ca, "ada", pki.Admin)
	p := dial(b, bus, store)
	for name, subj := range map[string]string{"bare": api.ServiceInspect.Subject(), "named": rpc.AskOn(p.Conn, api.ServiceInspect.Subject())} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Request(subj, nil, 10*time.Second); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("call", func(b *testing.B) {
		for b.Loop() {
			if _, err := api.Call(b.Context(), p.Conn, api.ServiceInspect, &skepv1.Ref{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("connect", func(b *testing.B) {
		for b.Loop() {
			q, err := tryDial(b, bus, store)
			if err != nil {
				b.Fatal(err)
			}
			q.Close()
		}
	})
}

package bus

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// What any instance may answer is answered by the one beside the broker, as long as there is one: nothing is on its way to a
// manager whose power goes. What is asked of the nearest leaves the broker for nobody.
func TestTheNearestIsAsked(t *testing.T) {
	f := found(t, "m2", "m3")
	for _, m := range []string{"m2", "m3"} {
		f.members[m].run()
		f.role(m, true)
	}
	f.await(3, false, "m1-1", "m2-1", "m3-1")

	serve := func(m string) *rpc.Server {
		nc := dial(t, f.members[m].m.Bus, pkitest.Store(t, f.ca, pki.Identity{NodeID: idOf(m), Role: pki.Manager}, time.Hour), nats.CustomInboxPrefix(subject.Inbox("state-"+idOf(m)))).Conn
		s, err := rpc.NewServer(nc, rpc.Config{Name: "skep-state"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		if err := api.Handle(s, api.ServiceInspect, func(context.Context, *skepv1.Ref) (*skepv1.ServiceReply, error) {
			return &skepv1.ServiceReply{Warnings: []string{m}}, nil
		}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	m1 := serve("m1")
	serve("m2")
	serve("m3")
	asker := dial(t, f.members["m1"].m.Bus, userStore(t, f.ca, "ada", pki.Viewer))
	ask := func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		r, err := api.Call(ctx, asker.Conn, api.ServiceInspect, &skepv1.Ref{Ref: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(r.Warnings, " ")
	}
	who := func(ctx context.Context) map[string]int {
		by := map[string]int{}
		for range 60 {
			by[ask(ctx)]++
		}
		return by
	}
	eventually(t, "the others are known", func() bool { return len(who(rpc.Anywhere(t.Context()))) == 3 })
	if by := who(t.Context()); by["m1"] != 60 {
		t.Errorf("one was beside the broker, and these answered: %v", by)
	}
	if err := m1.Close(); err != nil {
		t.Fatal(err)
	}
	if by := who(t.Context()); by["m1"] != 0 || by["m2"] == 0 || by["m3"] == 0 {
		t.Errorf("none was beside the broker, and these answered: %v", by)
	}
}

// Whoever may say or hear something may, or may not, on its near form too.
func TestNearFormsHaveTheSameRights(t *testing.T) {
	for _, role := range []Role{RoleWorker, RoleAgent, RoleAdmin, RoleOperator, RoleViewer, RoleLocal, RoleJoiner, RoleDoor, "state", "health", "none"} {
		p := Permissions(role, "user-u", here)
		for name, list := range map[string][]string{"publish": p.Publish.Allow, "not publish": p.Publish.Deny, "subscribe": hears(p)} {
			for _, s := range list {
				if near := subject.Near(s); near != "" && !slices.Contains(list, near) {
					t.Errorf("%s may %s %s, and that is not said of %s", role, name, s, near)
				}
				if strings.HasPrefix(s, strings.TrimSuffix(subject.AllNear, ">")) && !slices.Contains(list, subject.FromNear(s)) {
					t.Errorf("%s may %s %s alone", role, name, s)
				}
			}
		}
	}
}

func hears(p *server.Permissions) []string {
	if p.Subscribe == nil {
		return nil
	}
	return p.Subscribe.Allow
}

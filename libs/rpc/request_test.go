package rpc_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// A request is known by its id, its verb and who asks, and by nothing of that alone. What is asked while it is carried out is
// not part of it.
func TestMarks(t *testing.T) {
	n := kvtest.Server(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn := n.Conn(t)
	srv, err := rpc.NewServer(conn, rpc.Config{Name: "skep-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	type seen struct {
		mark  rpc.Mark
		again bool
	}
	var got seen
	create, remove, within := subject.API("service", "create"), subject.API("service", "rm"), subject.API("files", "uses")
	handle := func(ctx context.Context, _ *skepv1.Ref) (*skepv1.Empty, error) {
		got = seen{rpc.MarkOf(ctx), rpc.Again(ctx)}
		return &skepv1.Empty{}, nil
	}
	for _, s := range []string{create, within} {
		if err := rpc.Handle(srv, s, handle); err != nil {
			t.Fatal(err)
		}
	}
	if err := rpc.Handle(srv, remove, func(ctx context.Context, _ *skepv1.Ref) (*skepv1.Empty, error) {
		if rpc.MarkOf(ctx) == nil {
			t.Error("the id did not arrive")
		}
		return &skepv1.Empty{}, rpc.Call(ctx, conn, within, &skepv1.Ref{}, nil)
	}); err != nil {
		t.Fatal(err)
	}
	ask := func(nc *nats.Conn, on string, r rpc.Request) (seen, error) {
		t.Helper()
		got = seen{}
		err := rpc.Call(rpc.WithRequest(ctx, r), nc, on, &skepv1.Ref{}, nil)
		return got, err
	}
	must := func(nc *nats.Conn, on string, r rpc.Request) seen {
		t.Helper()
		s, err := ask(nc, on, r)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ada, bob := n.As(t, subject.Person("ada")), n.As(t, subject.Person("bob"))
	one, two := id.New(), id.New()
	first := must(ada, create, rpc.Request{ID: one})
	if first.again || len(first.mark) != 20 || !id.Valid(first.mark.NewID()) {
		t.Errorf("%x, again %v, makes %s", first.mark, first.again, first.mark.NewID())
	}
	if s := must(ada, create, rpc.Request{ID: one, Again: true}); !s.again || !s.mark.In([][]byte{first.mark}) {
		t.Errorf("the repeat is not known: %x, again %v", s.mark, s.again)
	}
	for what, s := range map[string]seen{
		"somebody else's":   must(bob, create, rpc.Request{ID: one, Again: true}),
		"another request":   must(ada, create, rpc.Request{ID: two, Again: true}),
		"another verb":      must(ada, within, rpc.Request{ID: one, Again: true}),
		"one without an id": must(ada, create, rpc.Request{Again: true}),
	} {
		if s.mark.In([][]byte{first.mark}) || s.mark.NewID() == first.mark.NewID() {
			t.Errorf("%s is taken for it", what)
		}
	}
	if s := must(ada, remove, rpc.Request{ID: one}); s.mark != nil {
		t.Error("the id went on to what is asked meanwhile")
	}
	for _, bad := range []string{"x", "*", strings.Repeat("a", 1<<10), strings.Repeat("A", id.Len)} {
		if s, err := ask(ada, create, rpc.Request{ID: bad}); !fault.Is(err, fault.CodeInvalid) || s.mark != nil {
			t.Errorf("id %.20q: %v", bad, err)
		}
	}
	var marks [][]byte
	for range 20 {
		marks = must(ada, create, rpc.Request{ID: id.New()}).mark.Onto(marks)
	}
	if last := must(ada, create, rpc.Request{ID: one}).mark.Onto(marks); len(last) != 8 || !first.mark.In(last) {
		t.Errorf("%d marks are kept, the newest of them: %v", len(last), first.mark.In(last))
	}
}

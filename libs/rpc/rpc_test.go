package rpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

func TestCallJSONAndFaults(t *testing.T) {
	n := kvtest.Server(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := rpc.NewServer(n.Conn(t), rpc.Config{Name: "skep-test", Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	err = rpc.Handle(srv, subject.API("service", "inspect"), func(_ context.Context, r *skepv1.Ref) (*skepv1.ServiceReply, error) {
		switch r.Ref {
		case "":
			panic("boom")
		case "web":
			return &skepv1.ServiceReply{Service: &skepv1.Service{Revision: 7}}, nil
		}
		return nil, fault.NotFound("no such service: %s", r.Ref)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := rpc.HandleNode(srv, subject.Svc("state", "status", "*"), func(_ context.Context, node string, _ *skepv1.NodeStatus) (*skepv1.StatusReply, error) {
		return nil, fault.Denied("asked by %s", node)
	}); err != nil {
		t.Fatal(err)
	}
	nc := n.Conn(t)
	var reply skepv1.ServiceReply
	if err := rpc.Call(ctx, nc, subject.API("service", "inspect"), &skepv1.Ref{Ref: "web"}, &reply); err != nil || reply.Service.Revision != 7 {
		t.Fatalf("%v %v", &reply, err)
	}
	err = rpc.Call(ctx, nc, subject.API("service", "inspect"), &skepv1.Ref{Ref: "wob"}, &reply)
	if !fault.Is(err, fault.CodeNotFound) || err.Error() != "no such service: wob" {
		t.Fatalf("%v", err)
	}
	if err = rpc.Call(ctx, nc, subject.API("service", "inspect"), &skepv1.Ref{}, &reply); !fault.Is(err, fault.CodeInternal) {
		t.Fatalf("a panic must be an internal fault: %v", err)
	}
	if err = rpc.Call(ctx, nc, subject.API("nobody", "home"), &skepv1.Ref{}, nil); !fault.Is(err, fault.CodeUnavailable) {
		t.Fatalf("%v", err)
	}
	if err = rpc.Call(ctx, n.As(t, "n1"), subject.Svc("state", "status", "n1"), &skepv1.NodeStatus{}, nil); err == nil || err.Error() != "asked by n1" {
		t.Fatalf("%v", err)
	}
	m, err := nc.Request(subject.API("service", "inspect"), []byte(`{"ref":"web"}`), 5*time.Second)
	if err != nil || !strings.Contains(string(m.Data), `"revision":"7"`) {
		t.Fatalf("by hand: %s %v", m.Data, err)
	}
}

// A request decides where its reply goes, and the broker does not check it: a worker or even a joiner could have the
// service overwrite a key.
func TestReplyOutsideInboxesIsRefused(t *testing.T) {
	n := kvtest.Server(t)
	nc := n.Conn(t)
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "skep-test"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	called := make(chan string, 2)
	err = rpc.Handle(srv, "skep.v1.api.test.echo", func(ctx context.Context, r *skepv1.Ref) (*skepv1.Ref, error) {
		called <- rpc.ReplyTo(ctx)
		return r, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	client := n.Conn(t)
	if err := client.PublishRequest("skep.v1.api.test.echo", subject.Spec.Key("cluster"), []byte(`{"ref":"x"}`)); err != nil {
		t.Fatal(err)
	}
	if err := rpc.Call(context.Background(), client, "skep.v1.api.test.echo", &skepv1.Ref{Ref: "y"}, nil); err != nil {
		t.Fatal(err)
	}
	if to := <-called; !strings.HasPrefix(to, "_INBOX") {
		t.Fatalf("a request with reply %s was served", to)
	}
	js, err := jetstream.New(client)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Open(js, subject.Spec).Get(context.Background(), "cluster"); !errors.Is(err, kv.ErrNotFound) {
		t.Fatalf("the reply overwrote a key: %q, %v", e.Value, err)
	}
}

// Field 1 of length 123 begins with a line feed and a brace.
func TestProtobufThatLooksLikeJSON(t *testing.T) {
	body, err := rpc.Encode(&skepv1.Ref{Ref: strings.Repeat("x", 123)}, false)
	if err != nil || body[0] != '\n' || body[1] != '{' {
		t.Fatalf("the body is %q %v", body, err)
	}
	var got skepv1.Ref
	if isJSON, err := rpc.Decode(body, "", &got); err != nil || isJSON || len(got.Ref) != 123 {
		t.Fatalf("%v %v %v", isJSON, err, &got)
	}
}

// However requests come in while a server closes, none is in work once it has: what a handler uses may go then.
func TestNothingIsInWorkAfterClose(t *testing.T) {
	n := kvtest.Server(t)
	nc, asking := n.Conn(t), n.Conn(t)
	for round := range 100 {
		srv, err := rpc.NewServer(nc, rpc.Config{Name: "closing"})
		if err != nil {
			t.Fatal(err)
		}
		var closed atomic.Bool
		var late atomic.Int32
		first := make(chan struct{})
		var once sync.Once
		subj := fmt.Sprint("skep.v1.api.closing.", round)
		err = rpc.Handle(srv, subj, func(context.Context, *skepv1.Empty) (*skepv1.Empty, error) {
			once.Do(func() { close(first) })
			if closed.Load() {
				late.Add(1)
			}
			return &skepv1.Empty{}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for !closed.Load() {
				_ = asking.PublishRequest(subj, "_INBOX.nobody", nil)
				_ = asking.Flush()
			}
		}()
		<-first
		if err := srv.Close(); err != nil {
			t.Fatal(err)
		}
		closed.Store(true)
		if late.Load() != 0 {
			t.Fatalf("round %d: %d requests were in work after Close", round, late.Load())
		}
	}
}

// Whoever asks while a server closes is answered at once, with an error that says that nothing was done: waiting for a place,
// for the node's turn, or handed over a moment too late.
func TestClosingAnswersEverybody(t *testing.T) {
	n := kvtest.Server(t)
	people := n.Conn(t)
	var nodes []*nats.Conn
	for i := range 40 {
		nodes = append(nodes, n.As(t, fmt.Sprint("n", i)))
	}
	var answered, turnedAway atomic.Int32
	for round := range 20 {
		nc := n.Conn(t)
		srv, err := rpc.NewServer(nc, rpc.Config{Name: "closing", Parallel: 2})
		if err != nil {
			t.Fatal(err)
		}
		work := func(ctx context.Context) (*skepv1.Empty, error) {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
			}
			return &skepv1.Empty{}, nil
		}
		api, svc := fmt.Sprint("skep.v1.api.closing.", round), fmt.Sprintf("skep.v1.svc.closing.%d.", round)
		if err := errors.Join(
			rpc.Handle(srv, api, func(ctx context.Context, _ *skepv1.Empty) (*skepv1.Empty, error) { return work(ctx) }),
			rpc.HandleNode(srv, svc+"*", func(ctx context.Context, _ string, _ *skepv1.Empty) (*skepv1.Empty, error) { return work(ctx) }),
		); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i, node := range nodes {
			asking, subj := node, fmt.Sprint(svc, "n", i)
			if i%2 == 1 {
				asking, subj = people, api
			}
			wg.Go(func() {
				for {
					ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
					err := rpc.Call(ctx, asking, subj, &skepv1.Empty{}, nil)
					cancel()
					switch {
					case errors.Is(err, rpc.ErrNobody):
						turnedAway.Add(1)
						return
					case err == nil:
						answered.Add(1)
					default:
						t.Errorf("round %d: %v", round, err)
						return
					}
				}
			})
		}
		time.Sleep(5 * time.Millisecond) // any moment will do: requests are in every state
		if err := srv.Close(); err != nil {
			t.Fatal(err)
		}
		nc.Close()
		wg.Wait()
	}
	if answered.Load() == 0 || turnedAway.Load() == 0 {
		t.Errorf("%d answered, %d turned away", answered.Load(), turnedAway.Load())
	}
}

// What is in work when a server closes is done, and answered; what does not end is cut off, so that the service does.
func TestClosingFinishesWork(t *testing.T) {
	n := kvtest.Server(t)
	asking, nc := n.Conn(t), n.Conn(t)
	srv, err := rpc.NewServer(nc, rpc.Config{Name: "closing"})
	if err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	handle := func(verb string, h func(context.Context) error) {
		err := rpc.Handle(srv, "skep.v1.api.closing."+verb, func(ctx context.Context, _ *skepv1.Empty) (*skepv1.Empty, error) {
			begun <- struct{}{}
			return &skepv1.Empty{}, h(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	handle("works", func(ctx context.Context) error { <-goOn; return ctx.Err() })
	handle("hangs", func(ctx context.Context) error { <-ctx.Done(); return fault.Unavailable("cut off") })
	ask := func(verb string) chan error {
		out := make(chan error, 1)
		go func() { out <- rpc.Call(t.Context(), asking, "skep.v1.api.closing."+verb, &skepv1.Empty{}, nil) }()
		<-begun
		return out
	}
	works, hangs := ask("works"), ask("hangs")
	closed := make(chan error, 1)
	go func() { closed <- srv.Close() }()
	close(goOn)
	if err := <-works; err != nil {
		t.Errorf("what was in work: %v", err)
	}
	if err := <-hangs; err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("what does not end: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// TestViewersSeeNoValues: what is answered into a viewer's inbox, the only one the broker lets him hear, is masked, in either
// encoding; what goes anywhere else is not.
func TestViewersSeeNoValues(t *testing.T) {
	n := kvtest.Server(t)
	srv, err := rpc.NewServer(n.Conn(t), rpc.Config{Name: "skep-test", Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	stored := &skepv1.Service{Spec: &skepv1.ServiceSpec{Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Env: []string{"DB_PASSWORD=hunter2"}}}}}
	if err := rpc.Handle(srv, subject.API("service", "inspect"), func(context.Context, *skepv1.Ref) (*skepv1.ServiceReply, error) {
		return &skepv1.ServiceReply{Service: stored}, nil
	}); err != nil {
		t.Fatal(err)
	}
	nc := n.Conn(t)
	for _, body := range []string{"", `{"ref":"web"}`} {
		for inbox, hidden := range map[string]bool{subject.ViewerInbox("user-vic"): true, subject.Inbox("user-ada"): false, "_INBOX": false} {
			sub, err := nc.SubscribeSync(inbox + ".1")
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.PublishRequest(subject.API("service", "inspect"), inbox+".1", []byte(body)); err != nil {
				t.Fatal(err)
			}
			m, err := sub.NextMsg(10 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if got := !strings.Contains(string(m.Data), "hunter2"); got != hidden || !strings.Contains(string(m.Data), "DB_PASSWORD") {
				t.Errorf("into %s, request %q: %q", inbox, body, m.Data)
			}
		}
	}
	if stored.Spec.Task.Container.Env[0] != "DB_PASSWORD=hunter2" {
		t.Error("the stored object was masked")
	}
}

// TestAnswersGoToTheAsker: whoever asks names an inbox of his own, spelled out, or gets no answer and nothing is done. Tried on
// every kind of endpoint, and on the subjects `nats micro` asks on.
func TestAnswersGoToTheAsker(t *testing.T) {
	n := kvtest.Server(t)
	srv, err := rpc.NewServer(n.As(t, "state-n9"), rpc.Config{Name: "skep-state", Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	echo := func(_ context.Context, r *skepv1.Ref) (*skepv1.Ref, error) { return r, nil }
	err = errors.Join(
		rpc.Handle(srv, subject.API("service", "inspect"), echo),
		rpc.HandleDirect(srv, subject.Node("n1", "stats"), echo),
		rpc.HandleNode(srv, subject.Svc("state", "status", "*"), func(_ context.Context, node string, _ *skepv1.Ref) (*skepv1.Ref, error) {
			return &skepv1.Ref{Ref: node}, nil
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	everything := n.Conn(t)
	heard, err := everything.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	api, svc, node := subject.API("service", "inspect"), subject.Svc("state", "status", "n1"), subject.Node("n1", "stats")
	for asked, right := range map[string]string{
		api: "_INBOX_viewer.user-vic.1", svc: "_INBOX_n1.1", node: "_INBOX_user-ada.1",
		"$SRV.PING": "_INBOX_user-ada.1", "$SRV.INFO.skep-state": "_INBOX_local-root.1", "$SRV.STATS": "_INBOX.1",
	} {
		for _, wrong := range []string{
			"_INBOX_n2.1", "_INBOX_join-n1.1", "_INBOX_>.1", "_INBOX_user-ada.*", "_INBOX_user-ada.>", subject.Spec.Key("cluster"), "$JS.API.STREAM.DELETE.KV_spec",
			subject.API("service", "rm"), subject.Svc("state", "status", "n2"), subject.Node("n1", "image.rm"), subject.Heartbeat("n1"), "elsewhere",
		} {
			if err := everything.PublishRequest(asked, wrong, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := everything.PublishRequest(asked, right, nil); err != nil {
			t.Fatal(err)
		}
		// The refusals come before the right request is looked at: an endpoint's requests are looked at in order.
		seen := map[string]bool{}
		for !seen[right] {
			m, err := heard.NextMsg(10 * time.Second)
			if err != nil {
				t.Fatalf("asked on %s for an answer to %s: %v; heard %v", asked, right, err, seen)
			}
			if m.Reply == "" { // an answer, not what was asked
				seen[m.Subject] = true
			}
		}
		for s := range seen {
			if s != right {
				t.Errorf("asked on %s: something went to %s", asked, s)
			}
		}
	}
}

// TestMicroShowsTheService: `nats micro info` and `stats` find the service under their names and read its numbers.
func TestMicroShowsTheService(t *testing.T) {
	n := kvtest.Server(t)
	srv, err := rpc.NewServer(n.Conn(t), rpc.Config{Name: "skep-state", Version: "v1.2.3", Description: "keeps things"})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if err := rpc.Handle(srv, subject.API("service", "inspect"), func(context.Context, *skepv1.Ref) (*skepv1.Ref, error) {
		return nil, fault.NotFound("no such service: web")
	}); err != nil {
		t.Fatal(err)
	}
	nc := n.As(t, "user-ada")
	if err := rpc.Call(t.Context(), nc, subject.API("service", "inspect"), &skepv1.Ref{}, nil); !fault.Is(err, fault.CodeNotFound) {
		t.Fatal(err)
	}
	var p micro.Ping
	var i micro.Info
	var st micro.Stats
	for _, verb := range []struct {
		name string
		to   any
	}{{"PING", &p}, {"INFO.skep-state", &i}, {"STATS.skep-state", &st}} {
		ask := func() {
			m, err := nc.Request("$SRV."+verb.name, nil, 10*time.Second)
			if err == nil {
				err = json.Unmarshal(m.Data, verb.to)
			}
			if err != nil {
				t.Fatalf("%s: %v", verb.name, err)
			}
		}
		for ask(); verb.to == &st && st.Endpoints[0].NumRequests == 0; ask() { // the answer is sent before it is counted
		}
	}
	if p.Name != "skep-state" || p.Version != "1.2.3" || p.ID == "" || p.Type != micro.PingResponseType {
		t.Errorf("ping: %+v", p)
	}
	if len(i.Endpoints) != 1 || i.Description != "keeps things" || i.Endpoints[0].Name != "service-inspect" || i.Endpoints[0].QueueGroup != subject.Queue || i.Endpoints[0].Metadata["request"] != "skep.v1.Ref" {
		t.Errorf("info: %+v", i)
	}
	e := st.Endpoints[0]
	if e.NumRequests != 1 || e.NumErrors != 1 || e.LastError != "not_found: no such service: web" || string(e.Data) != `{"faults":{"not_found":1}}` || st.Started.IsZero() {
		t.Errorf("stats: %+v %s", e, e.Data)
	}
	if _, err := nc.Request("$SRV.PING.skep-state."+p.ID, nil, 10*time.Second); err != nil {
		t.Error(err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Request("$SRV.PING", nil, 10*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("after Close: %v", err)
	}
}

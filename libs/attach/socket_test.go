package attach

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"skep.dev/libs/fault"
)

// one is an Attacher that knows one task.
type one struct{ blocked chan struct{} }

var attached = Attachment{Netns: "/run/n", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateway: netip.MustParseAddr("10.0.0.1")}

func (o one) Attach(ctx context.Context, r Request) (Attachment, error) {
	if r.TaskID == "wait" {
		close(o.blocked)
		<-ctx.Done()
		return Attachment{}, ctx.Err()
	}
	if r.TaskID != "t" || r.Hostname != "h" {
		return Attachment{}, fault.Exhausted("no address for %s", r.TaskID)
	}
	return attached, nil
}
func (one) Drain(_ context.Context, task string) error {
	if task != "t" {
		return fault.Invalid("drain: no task %q", task)
	}
	return nil
}

func (one) Detach(_ context.Context, task string) error {
	if task != "t" {
		return fault.Invalid("%q is not a task id", task)
	}
	return nil
}
func (one) List(context.Context) ([]string, error) { return []string{"t"}, nil }

func TestOverTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "mesh.sock")
	c := Dial(path)
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := c.List(ctx); !fault.Is(err, fault.CodeUnavailable) {
		t.Fatalf("nobody there: %v", err)
	}
	o := one{blocked: make(chan struct{})}
	for round := range 2 { // the second round is a restart of the mesh under the same client
		s, err := Serve(path, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Serve(path, o); err == nil {
			t.Fatal("two processes serve one socket")
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatal(st.Mode(), err)
		}
		if a, err := c.Attach(ctx, Request{TaskID: "t", Hostname: "h"}); err != nil || !reflect.DeepEqual(a, attached) {
			t.Fatal(round, a, err)
		}
		if _, err := c.Attach(ctx, Request{TaskID: "u"}); !fault.Is(err, fault.CodeExhausted) || err.Error() != "no address for u" {
			t.Fatal(err)
		}
		if err := c.Drain(ctx, "t"); err != nil {
			t.Fatal(err)
		}
		if err := c.Detach(ctx, "t"); err != nil {
			t.Fatal(err)
		}
		if err := c.Detach(ctx, "../x"); !fault.Is(err, fault.CodeInvalid) {
			t.Fatal(err)
		}
		if ids, err := c.List(ctx); err != nil || len(ids) != 1 {
			t.Fatal(ids, err)
		}
		if round == 1 {
			go func() { <-o.blocked; cancel() }()
			if _, err := c.Attach(ctx, Request{TaskID: "wait"}); err == nil {
				t.Fatal("the call outlived its context")
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err == nil {
			t.Fatal("the socket is still there")
		}
	}
}

package cli

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// tries are those of one verb.
type tries struct {
	mu    sync.Mutex
	marks []string
	again []bool
}

// note takes a try down, and says whether it is the first.
func (y *tries) note(ctx context.Context) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.marks, y.again = append(y.marks, string(rpc.MarkOf(ctx))), append(y.again, rpc.Again(ctx))
	return len(y.marks) == 1
}

// oneRequest checks that they are one request, asked n times.
func (y *tries) oneRequest(t *testing.T, n int) {
	t.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.marks) != n || y.marks[0] == "" || len(slices.Compact(slices.Clone(y.marks))) != 1 || y.again[0] || n > 1 && slices.Contains(y.again[1:], false) {
		t.Errorf("%d tries, want %d of one request: marks %q, again %v", len(y.marks), n, y.marks, y.again)
	}
}

// throughLossy is what a command needs to go over a connection that loses answers.
func throughLossy(c *cluster) (Env, *kvtest.Lossy) {
	y := kvtest.NewLossy(c.t, c.url)
	env := c.env(&safeBuffer{}, &safeBuffer{})
	env.Now, env.Patience = time.Now, time.Minute
	env.Connect = func(context.Context) (*nats.Conn, error) {
		return nats.Connect(y.URL, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.CustomInboxPrefix(subject.Inbox(subject.LocalRoot)))
	}
	return env, y
}

// A change whose answer is lost with the connection is asked again under the same id, and the command ends as if nothing had
// been.
func TestAnswerLost(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	env, y := throughLossy(c)
	var made tries
	c.heard = func(ctx context.Context, r proto.Message) {
		if _, ok := r.(*skepv1.ScaleServiceRequest); ok && made.note(ctx) {
			y.Lose(true)
			y.Cut()
			y.Lose(false)
		}
	}
	if code := Main(t.Context(), env, []string{"service", "scale", "-d", "web=3"}); code != 0 {
		t.Errorf("status %d: %s", code, env.Err.(*safeBuffer).String())
	}
	made.oneRequest(t, 2)
	// The next command is another request.
	if r := c.run("service", "scale", "-d", "web=3"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	made.mu.Lock()
	defer made.mu.Unlock()
	if made.marks[2] == made.marks[0] || made.again[2] {
		t.Error("two commands, one id")
	}
}

// What a manager could not store for certain is asked again too. Nobody who may have made it answers any more: the command says
// so. What changes nodes is asked once.
func TestNobodyKnowsWhetherItWasMade(t *testing.T) {
	c := newCluster(t)
	c.services = []*skepv1.Service{webService()}
	env, y := throughLossy(c)
	env.Patience = 2 * time.Second
	var made tries
	c.heard = func(ctx context.Context, r proto.Message) {
		if _, ok := r.(*skepv1.ScaleServiceRequest); ok {
			made.note(ctx)
			y.Lose(true)
			y.Cut()
		}
	}
	code := Main(t.Context(), env, []string{"service", "scale", "-d", "web=3"})
	if text := env.Err.(*safeBuffer).String(); code != ExitError || !strings.Contains(text, madeOrNot) {
		t.Errorf("status %d: %s", code, text)
	}
	made.oneRequest(t, 1)
	y.Lose(false)

	n := 0
	c.heard = nil
	c.on = func(r proto.Message) error {
		if _, ok := r.(*skepv1.ScaleServiceRequest); ok {
			if n++; n < 3 {
				return fault.Unavailable("the change could not be stored, or its acknowledgement was lost")
			}
		}
		return nil
	}
	want(t, c.run("service", "scale", "-d", "web=3"), 0, "web scaled to 3", "")
	if n != 3 {
		t.Errorf("asked %d times", n)
	}
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/quorum"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/stream"
	"skep.dev/libs/subject"
)

const (
	// callTimeout bounds one request to the API.
	callTimeout = 30 * time.Second
	// patience is how long a request is tried again while a manager restarts or another takes over.
	patience = 8 * time.Second
	// dialPatience is the same for connecting: shorter, for a daemon that is down stays down more often than not.
	dialPatience = 5 * time.Second
	// retryEvery paces it.
	retryEvery = 200 * time.Millisecond
	// readWithin is how long the first try of a read is waited for: what was on its way to a manager whose power went is lost,
	// and the next one goes to another. Each try has twice the time, the last all that is left.
	readWithin = 1500 * time.Millisecond
	// writeWithin is the same for a change that may be asked again: it may look up an image, or wait for an election.
	writeWithin = 5 * time.Second
	// cutFor is how long local root waits for the broker of this machine before another manager is asked.
	cutFor = 1500 * time.Millisecond
)

type impatientKey struct{}

// impatient is for loops that show what is wrong and try again themselves.
func impatient(ctx context.Context) context.Context {
	return context.WithValue(ctx, impatientKey{}, true)
}

// call asks the API, and asks again for a while when no manager is there to answer. A change that may have been made is asked
// again under the id it had, by which the managers know it.
func call[Q, R proto.Message](ctx context.Context, a *app, e api.Endpoint[Q, R], req Q) (R, error) {
	nc, err := a.conn(ctx)
	if err != nil {
		var none R
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	limit := a.Patience
	if ctx.Value(impatientKey{}) != nil {
		limit = 0
	}
	within := readWithin
	request := rpc.Request{}
	if e.Once {
		request.ID, within = id.New(), writeWithin
	}
	near := true // the manager that holds the connection is asked first
	for began, heard := time.Now(), time.Now(); ; {
		asked := rpc.OnStale(ctx, func(asOf time.Time) { a.stale(ctx, nc, asOf) })
		if !near {
			asked = rpc.Anywhere(asked)
		}
		asked = rpc.WithRequest(asked, request)
		led, stop := a.whileLed(asked, nc, e.Verb)
		end := func() {}
		if e.Repeatable() && time.Since(began)+within < limit {
			led, end = context.WithTimeout(led, within)
			within *= 2
		}
		reply, err := ask(led, a, nc, e, req)
		end()
		stop()
		if err == nil {
			return reply, nil
		}
		near = near && errors.Is(err, rpc.ErrNobody)
		request.Again = request.Again || request.ID != "" && mayBeMade(err)
		if nc.IsConnected() {
			heard = time.Now()
		}
		if next, lost := a.afterLoss(ctx, nc, e.Verb, err); lost != nil {
			return reply, lost
		} else if next != nil {
			nc, began = next, time.Now()
			continue
		}
		if !again(e.Verb, err) || time.Since(began) >= limit {
			if request.Again && fault.Is(err, fault.CodeUnavailable) && !mayBeMade(err) {
				err = fault.Unavailable("%v; %s", err, madeOrNot)
			}
			return reply, err
		}
		if time.Since(heard) > cutFor {
			if next := a.elsewhere(ctx); next != nil {
				nc = next
			}
		}
		if time.Since(began) > time.Second {
			a.notice()
		}
		select {
		case <-ctx.Done():
			return reply, err
		case <-time.After(retryEvery):
		}
	}
}

// again: a request nobody heard may be repeated, and one that was not answered if the verb is of that kind.
func again(v *api.Verb, err error) bool {
	if v.Placed() {
		return false // a node that does not answer is told at once
	}
	return errors.Is(err, rpc.ErrNobody) || fault.Is(err, fault.CodeUnavailable) && v.Repeatable()
}

// madeOrNot is what a person is told of a change whose answer was lost, and that nobody could be asked for again.
const madeOrNot = "the change may have been made or not, look before you repeat it"

// errCut is the end of a request that was not sent.
var errCut = fault.Unavailable("the connection to the manager is broken")

// mayBeMade reports whether a change that ended so may have been made all the same.
func mayBeMade(err error) bool {
	return fault.Is(err, fault.CodeUnavailable) && !errors.Is(err, rpc.ErrNobody) && !errors.Is(err, errCut) && !quorum.Refused(err)
}

// ask is one request. It ends early when the broker refuses it, which a plain request would not notice, and when the
// connection breaks while it is under way.
func ask[Q, R proto.Message](ctx context.Context, a *app, nc *nats.Conn, e api.Endpoint[Q, R], req Q) (R, error) {
	if n := proto.Size(req); int64(n) > nc.MaxPayload() {
		var none R
		return none, fault.Invalid("what %s would send is %d bytes, and one message holds %d: a service's spec may have %d, a stack's services together as many; put large values into configs or secrets", e.Subject(), n, nc.MaxPayload(), spec.MaxSize)
	}
	ctx, stop := a.guard(ctx, rpc.AskOn(nc, e.Subject()), e.Subject())
	defer stop()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	gone := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer nc.RemoveStatusListener(gone)
	if !nc.IsConnected() && e.Repeatable() {
		var none R
		return none, errCut
	}
	go func() {
		select {
		case <-ctx.Done():
		case _, ok := <-gone:
			if !ok {
				return
			}
			if e.Effect == api.Reads {
				cut(fault.Unavailable("the connection to the manager broke"))
				return
			}
			cut(fault.Unavailable("the connection to the manager broke before it answered: %s", madeOrNot))
		}
	}()
	if e.Placed() {
		go a.whileUp(ctx, nc, e.Node(), cut)
	}
	reply, err := api.Call(ctx, nc, e, req)
	return reply, caused(ctx, err)
}

// dial opens a stream to a node, and says at once when the broker refuses it.
func dial[Q, R proto.Message](ctx context.Context, a *app, nc *nats.Conn, e api.Endpoint[Q, R], req Q, opts ...stream.Option) (*stream.Session, error) {
	gctx, stop := a.guard(ctx, rpc.AskOn(nc, e.Subject()), e.Subject())
	gctx, end := context.WithCancelCause(gctx)
	opening, opened := context.WithCancel(gctx)
	go a.whileUp(opening, nc, e.Node(), end)
	s, err := stream.Dial(gctx, nc, e.Subject(), e.Node(), req, opts...)
	opened()
	if err != nil {
		err = caused(gctx, err)
		end(nil)
		stop()
		return nil, err
	}
	context.AfterFunc(ctx, func() { end(nil); stop() }) // the session lives as long as gctx
	return s, nil
}

// caused is the reason we gave for ending a request, if we ended it.
func caused(ctx context.Context, err error) error {
	var l *lost
	if err != nil && errors.As(context.Cause(ctx), &l) {
		return l
	}
	var f *fault.Error
	if err != nil && errors.As(context.Cause(ctx), &f) {
		return f
	}
	return err
}

// refusal waits for the broker's refusal of one subject.
type refusal struct {
	subj string // as it is published on
	verb string
	end  context.CancelCauseFunc
}

// guard ends the returned context when the broker refuses what is published on subj.
func (a *app) guard(ctx context.Context, subj, verb string) (context.Context, func()) {
	ctx, end := context.WithCancelCause(ctx)
	r := &refusal{subj, verb, end}
	a.mu.Lock()
	a.refusals[r] = true
	a.mu.Unlock()
	return ctx, func() {
		a.mu.Lock()
		delete(a.refusals, r)
		a.mu.Unlock()
		end(nil)
	}
}

// refused is the connection's error handler.
func (a *app) refused(_ *nats.Conn, _ *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	text := strings.ToLower(err.Error())
	a.mu.Lock()
	defer a.mu.Unlock()
	for r := range a.refusals {
		if strings.Contains(text, fmt.Sprintf("publish to %q", strings.ToLower(r.subj))) || strings.Contains(text, fmt.Sprintf("publish to %q", strings.ToLower(subject.Near(r.subj)))) {
			r.end(a.denied(r.verb))
		}
	}
}

func (a *app) denied(subj string) error {
	if c, err := a.store.Load(a.contextName()); err == nil {
		if user, role, _, err := c.User(); err == nil {
			may := map[string]string{
				pki.Viewer:   "a viewer's: it may look at the cluster, but not change anything or reach into tasks",
				pki.Operator: "an operator's: it may run services, but not change nodes, the cluster, its CA, users or tokens",
			}[role]
			if may != "" {
				return fault.Denied("the certificate of user %s is %s (refused: %s); on a manager, `skep user create` makes another", user, may, subj)
			}
		}
	}
	return fault.Denied("the cluster does not let this user do that (refused: %s)", subj)
}

// notice tells once that something takes longer than it should.
func (a *app) notice() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.noticed {
		a.noticed = true
		a.tellf("Waiting for a manager to answer ...\n")
	}
}

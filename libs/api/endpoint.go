// Package api is the list of everything one part of skep may ask of another: for each verb its subject, who answers, the
// messages that go to and fro, whether it changes something, and who may ask.
//
// Handlers are bound to the list (Handle, HandleNode), callers ask through it (Call), and what has to know all verbs
// ranges over it: the rights of people at the broker, the command line's rule for asking again, `skep decode`, and the
// table in docs/contracts.md. So a new verb is a line here, a handler and a caller.
package api

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/fault"
	"skep.dev/libs/patience"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// Effect says what a request does, and with that whether it may be repeated.
type Effect int

// A read may be repeated whenever it was not answered. A write may be repeated only if nobody heard it (rpc.ErrNobody):
// one that was heard and not answered may have been carried out. A write that is Once may be repeated under its id.
const (
	Reads Effect = iota + 1
	Writes
)

func (e Effect) String() string {
	if e == Reads {
		return "reads"
	}
	return "writes"
}

// Callers says who may ask. The broker holds it (services/bus/permissions.go); managers may ask everything.
type Callers int

// The callers of a verb.
const (
	Viewers   Callers = iota + 1 // every person: those who may only look, too
	Operators                    // people who run services: everything but nodes, the CA, users and the unlock key
	Admins                       // people who may change all of that
	Managers                     // the services of a manager
	Nodes                        // each node, with its own id as the subject's last token
	Joiners                      // who has no certificate yet
)

func (c Callers) String() string {
	return [...]string{"", "viewers", "operators", "admins", "managers", "the node", "joiners"}[c]
}

// Verb is what an endpoint is, whatever the types of its messages.
type Verb struct {
	// Subject has a * where the id of a node (or the name of a joiner) stands.
	Subject string
	// Service answers: the name of its directory, without what it shares with others.
	Service string
	Effect  Effect
	Callers Callers
	// Once: a write that is carried out once however often it is asked under one id (rpc.WithRequest).
	Once bool
	// Request and Reply are the types of the messages.
	Request, Reply protoreflect.MessageType
}

// Placed reports whether the subject has a place for the id of a node or joiner.
func (v *Verb) Placed() bool { return strings.Contains(v.Subject, "*") }

// Endpoint is a verb and the types of its messages, which are pointers to generated ones.
type Endpoint[Q, R proto.Message] struct {
	*Verb
	at string // the node's id, "" for a verb without one
}

// At is the endpoint of one node.
func (e Endpoint[Q, R]) At(node string) Endpoint[Q, R] {
	e.at = node
	return e
}

// Node is the node that was named by At, "" when none was.
func (e Endpoint[Q, R]) Node() string { return e.at }

// Subject is where requests go. It has a * while no node was named: the pattern of all of them.
func (e Endpoint[Q, R]) Subject() string {
	if e.at == "" {
		return e.Verb.Subject
	}
	return strings.Replace(e.Verb.Subject, "*", e.at, 1)
}

// Call asks an endpoint. Errors are *fault.Error: what the service said, or unavailable when nobody answers
// (rpc.ErrNobody is in the chain then) or ctx ends first.
func Call[Q, R proto.Message](ctx context.Context, nc *nats.Conn, e Endpoint[Q, R], req Q) (R, error) {
	reply := e.Verb.Reply.New().Interface().(R)
	if e.Placed() && e.at == "" {
		return reply, fault.Invalid("ask %s: no node was named", e.Verb.Subject)
	}
	return reply, rpc.Call(ctx, nc, e.Subject(), req, reply)
}

// Handle answers an endpoint: any instance of the service, or, when the endpoint is one node's, this one alone. What changes
// something waits while the managers elect a leader, and is refused before it begins when they have no majority; what people
// only read is then answered from the last known state.
func Handle[Q, R proto.Message](s *rpc.Server, e Endpoint[Q, R], h func(context.Context, Q) (R, error)) error {
	switch {
	case e.Effect == Writes:
		h = led(s, h)
	case e.Callers <= Admins:
		h = asIs(s, h)
	}
	if e.at != "" {
		return rpc.HandleDirect(s, e.Subject(), h)
	}
	return rpc.Handle(s, e.Subject(), h)
}

// led is h for when there is a leader. Nodes have none of it: they ask again by themselves, and thousands that wait would
// take all places.
func led[Q, R proto.Message](s *rpc.Server, h func(context.Context, Q) (R, error)) func(context.Context, Q) (R, error) {
	return func(ctx context.Context, q Q) (R, error) {
		ctx = patience.Until(ctx, time.Now().Add(patience.Election))
		if err := s.MayWrite(ctx); err != nil {
			var none R
			return none, err
		}
		return h(ctx, q)
	}
}

// asIs is h, answering as it can when there is no leader. Services among themselves decide by what they read, and go without.
func asIs[Q, R proto.Message](s *rpc.Server, h func(context.Context, Q) (R, error)) func(context.Context, Q) (R, error) {
	return func(ctx context.Context, q Q) (R, error) {
		if s.Stale() {
			ctx = patience.AsIs(ctx)
		}
		return h(ctx, q)
	}
}

// HandleNode answers an endpoint that nodes ask. h gets the id of the node that asks: the broker lets a node publish under
// its own only.
func HandleNode[Q, R proto.Message](s *rpc.Server, e Endpoint[Q, R], h func(ctx context.Context, node string, q Q) (R, error)) error {
	if e.Callers != Nodes {
		return fmt.Errorf("serve %s: nodes do not ask it", e.Verb.Subject)
	}
	return rpc.HandleNode(s, e.Subject(), h)
}

// once has a write that was defined be one that may be asked again.
func once[Q, R proto.Message](e Endpoint[Q, R]) Endpoint[Q, R] {
	e.Verb.Once = true
	return e
}

// Repeatable reports whether the verb may be asked again, under the id of its request, when it was heard and not answered. What
// one node answers is not: somebody waits to be told about that node.
func (v *Verb) Repeatable() bool { return !v.Placed() && (v.Effect == Reads || v.Once) }

// Does says what a request does, in words.
func (v *Verb) Does() string {
	if v.Once {
		return v.Effect.String() + " once"
	}
	return v.Effect.String()
}

// verbs are all that were defined, in the order of the list.
var verbs []*Verb

// define adds a verb to the list.
func define[Q, R proto.Message](subj, service string, effect Effect, callers Callers) Endpoint[Q, R] {
	var q Q
	var r R
	v := &Verb{Subject: subj, Service: service, Effect: effect, Callers: callers, Request: q.ProtoReflect().Type(), Reply: r.ProtoReflect().Type()}
	verbs = append(verbs, v)
	return Endpoint[Q, R]{Verb: v}
}

// All are the verbs, in the order of the list.
func All() []*Verb { return verbs }

// Of finds the verb that a subject belongs to, whoever asks on it; nil when it is none.
func Of(subj string) *Verb {
	subj, _, _, _ = subject.AskedBy(subj)
	for _, v := range verbs {
		if subject.Matches(v.Subject, subj) {
			return v
		}
	}
	return nil
}

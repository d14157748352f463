package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"slices"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/subject"
)

// A change whose answer was lost may have been made or not. So that whoever asked can ask again, a request that changes
// something has an id, and its repeats have the same one. What answers knows a repeat by what it stored with the change itself
// (Mark), so it needs no memory of requests and no lock, and a repeat may come to another instance, or to one that was started
// since.

// Request is what a request says of itself.
type Request struct {
	// ID is the caller's, of the form of libs/id and of no other request; "" = it has none and is never asked again.
	ID string
	// Again: it was asked before, and not answered.
	Again bool
}

type requestKey struct{}

// WithRequest gives the Calls under ctx an id. They are one request, asked one or more times.
func WithRequest(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

func tellRequest(ctx context.Context, h nats.Header) {
	r, _ := ctx.Value(requestKey{}).(Request)
	if r.ID == "" {
		return
	}
	h.Set(HeaderRequest, r.ID)
	if r.Again {
		h.Set(HeaderAgain, "1")
	}
}

// Mark is what a change leaves in what it changed, to be known by: of a request's id, of who asked, and of the verb. The id of
// somebody else's request is therefore worth nothing. nil: the request has no id.
type Mark []byte

// keptMarks is how many marks an object keeps. Who asks again after as many changes by others is told what a new request would
// be: that it is out of sequence, or that it is done.
const keptMarks = 8

// markSize in bytes.
const markSize = 20

type markKey struct{}

type marked struct {
	mark  Mark
	again bool
}

// withMark reads off a request what the change in work is known by.
func withMark(ctx context.Context, req *nats.Msg) (context.Context, error) {
	r := req.Header.Get(HeaderRequest)
	if r == "" {
		return ctx, nil
	}
	if !id.Valid(r) {
		return ctx, fault.Invalid("the id of the request to %s is invalid: it must be %d characters of 0-9 and a-z", req.Subject, id.Len)
	}
	verb, _, _, _ := subject.AskedBy(req.Subject)
	sum := sha256.Sum256([]byte(ActorOf(ctx).Name + "\x00" + verb + "\x00" + r))
	return context.WithValue(ctx, markKey{}, marked{sum[:markSize], req.Header.Get(HeaderAgain) != ""}), nil
}

// MarkOf is what the change in work under ctx is known by.
func MarkOf(ctx context.Context) Mark {
	m, _ := ctx.Value(markKey{}).(marked)
	return m.mark
}

// Again reports whether the request in work was asked before: it may have been carried out.
func Again(ctx context.Context) bool {
	m, _ := ctx.Value(markKey{}).(marked)
	return m.again
}

// Removed reports whether err, of the removal of the object that ref names, means that an earlier try of the request was carried out,
// or that somebody else did what it asks for. A name may be another object's by now, an id never is.
func Removed(ctx context.Context, ref string, err error) bool {
	return Again(ctx) && id.Valid(ref) && fault.Is(err, fault.CodeNotFound)
}

// In reports whether the change was made, by the marks of what it changes.
func (m Mark) In(marks [][]byte) bool {
	return m != nil && slices.ContainsFunc(marks, func(b []byte) bool { return bytes.Equal(b, m) })
}

// Onto is the marks of an object after the change.
func (m Mark) Onto(marks [][]byte) [][]byte {
	if m == nil {
		return marks
	}
	out := append(slices.Clone(marks), m)
	return out[max(0, len(out)-keptMarks):]
}

// NewID is the id of what the change makes: the same for each repeat.
func (m Mark) NewID() string {
	if m == nil {
		return id.New()
	}
	return id.Of(m)
}

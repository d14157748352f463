// Package stream carries byte streams between a client and a node over core NATS: exec, logs, image loads.
//
// A session has three data channels, "in" towards the node, "out" and "err" away from it, and one control
// channel each way ("cctl", "ctl"). Data travels in frames of at most 32 KiB, each led by the offset of its first
// byte; control messages are numbered. The receiver of a channel grants credit (a window of 256 KiB, granted
// again when half of it was read), so a slow reader blocks the writer and neither side, nor the broker between
// them, stores more than a window.
//
// It refuses to guess: a gap in offsets or numbers, a peer that sends past its credit, or 10 s without a sign of
// life from the peer end the session with an error. Core NATS may lose messages when a connection breaks; the
// gap shows that, and nothing is ever delivered twice, out of order or with a hole.
//
// Failure story: when the client goes, the node's handler context ends within 10 s (at once if it could say so);
// when the node goes, the client's readers and Wait return an error within 10 s. What arrived before the end can
// still be read.
package stream

import (
	"errors"
	"fmt"
	"time"

	"skep.dev/libs/fault"
)

const (
	// Window is how many bytes (and overhead bytes of frames) a receiver lets its peer send ahead.
	Window = 256 << 10
	// MaxFrame is the most data one frame carries.
	MaxFrame = 32 << 10
	// frameOverhead is charged against the credit for each frame beside its data, so that a window also bounds
	// the number of small frames in flight.
	frameOverhead = 256
	// headerLen is the big-endian offset or number at the start of every message.
	headerLen = 8

	// HeaderSession carries the session id the client chose, HeaderWindow the receive window of who sends it.
	HeaderSession = "Skep-Session"
	HeaderWindow  = "Skep-Window"

	controlBacklog = 256
)

// Channel names.
const (
	In  = "in"
	Out = "out"
	Err = "err"

	ctlToClient = "ctl"
	ctlToNode   = "cctl"
)

// ErrClosed is what a session's own side sees after Close.
var ErrClosed = errors.New("stream closed")

// ErrGone says that the peer left or was lost before the stream came to its end.
var ErrGone error = fault.Unavailable("the other side is gone")

// ErrBroken says that messages were lost or the peer broke the rules; what was read so far is right.
var ErrBroken error = fault.Unavailable("the stream broke")

// Option changes how Dial and Serve behave.
type Option func(*options)

type options struct {
	timeout time.Duration
	open    time.Duration
	limit   int
	queue   string
}

func defaults(opts []Option) options {
	o := options{timeout: 10 * time.Second, open: 30 * time.Second, limit: 1024}
	for _, f := range opts {
		f(&o)
	}
	return o
}

// WithTimeout sets how long the peer may be silent before the session is given up (default 10 s). Both sides
// must agree: each says something at least every quarter of it.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithOpenTimeout sets how long Dial waits for the node to accept or refuse (default 30 s).
func WithOpenTimeout(d time.Duration) Option { return func(o *options) { o.open = d } }

// WithLimit sets how many sessions Serve holds at once (default 1024); more are refused as exhausted.
func WithLimit(n int) Option { return func(o *options) { o.limit = n } }

// WithQueue has several instances under one name serve a subject: each stream is opened by one of them.
func WithQueue(name string) Option { return func(o *options) { o.queue = name } }

func errGap(channel string, want, got uint64) error {
	return fmt.Errorf("%w: %s continues at %d, expected %d: messages were lost, try again", ErrBroken, channel, got, want)
}

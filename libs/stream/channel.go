package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	skepv1 "skep.dev/proto/skep/v1"
)

// cost is what a frame takes from the credit.
func cost(n int) int64 { return int64(n) + frameOverhead }

// inbound is the receiving end of a channel. Its fields are guarded by the session's mutex.
type inbound struct {
	s        *Session
	name     string
	frames   [][]byte
	head     int    // bytes of frames[0] already read
	next     uint64 // offset the next frame must have
	held     int64  // cost of what arrived and was not granted again
	consumed int64  // cost of what was read since the last grant
	hasFinal bool
	final    uint64
}

func (r *inbound) complete() bool { return r.hasFinal && r.next == r.final }

func (r *inbound) pushLocked(offset uint64, data []byte) error {
	if offset != r.next {
		return errGap(r.name, r.next, offset)
	}
	if r.hasFinal && offset+uint64(len(data)) > r.final {
		return fmt.Errorf("%w: data on %s after its end", ErrBroken, r.name)
	}
	if len(data) == 0 {
		return nil
	}
	if r.held += cost(len(data)); r.held > Window {
		return fmt.Errorf("%w: more data on %s than was asked for", ErrBroken, r.name)
	}
	r.next += uint64(len(data))
	r.frames = append(r.frames, data)
	r.s.cond.Broadcast()
	return nil
}

func (r *inbound) finalLocked(offset uint64) {
	r.hasFinal, r.final = true, offset
	r.s.cond.Broadcast()
}

// Read implements io.Reader.
func (r *inbound) Read(p []byte) (int, error) {
	s := r.s
	if err := s.Accept(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	for len(r.frames) == 0 && !r.complete() && !s.ended {
		s.cond.Wait()
	}
	if len(r.frames) == 0 {
		defer s.mu.Unlock()
		if r.complete() {
			return 0, io.EOF
		}
		return 0, s.causeLocked()
	}
	n, grant := 0, int64(0)
	for n < len(p) && len(r.frames) > 0 {
		f := r.frames[0]
		c := copy(p[n:], f[r.head:])
		n, r.head = n+c, r.head+c
		if r.head == len(f) {
			r.frames[0] = nil
			r.frames, r.head = r.frames[1:], 0
			r.consumed += cost(len(f))
		}
	}
	if len(r.frames) == 0 {
		r.frames = nil
	}
	if r.consumed >= Window/2 && !r.hasFinal && !s.ended {
		grant, r.consumed = r.consumed, 0
		r.held -= grant
	}
	s.mu.Unlock()
	if grant > 0 {
		c := &skepv1.Credit{Channel: r.name, Bytes: uint64(grant)}
		if err := s.sendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Credit{Credit: c}}); err != nil {
			s.end(err)
		}
	}
	return n, nil
}

// outbound is the sending end of a channel.
type outbound struct {
	s    *Session
	name string
	subj string

	credit int64 // guarded by the session's mutex, as is closed
	closed bool

	offset atomic.Uint64 // bytes handed to the connection

	mu  sync.Mutex // one Write at a time; guards what follows
	buf []byte
	eof bool
}

// Write implements io.Writer. It returns once everything is handed to the connection.
func (w *outbound) Write(p []byte) (int, error) {
	if err := w.s.Accept(); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	done := 0
	for done < len(p) {
		n := min(len(p)-done, MaxFrame)
		if err := w.reserve(cost(n)); err != nil {
			return done, err
		}
		if cap(w.buf) < headerLen+n {
			w.buf = make([]byte, headerLen+n)
		}
		b := w.buf[:headerLen+n]
		binary.BigEndian.PutUint64(b, w.offset.Load())
		copy(b[headerLen:], p[done:done+n])
		if err := w.s.nc.Publish(w.subj, b); err != nil {
			err = fmt.Errorf("send on stream %s: %w", w.s.id, err)
			w.s.end(err)
			return done, err
		}
		w.offset.Add(uint64(n))
		done += n
	}
	return done, nil
}

// reserve waits until the peer granted c.
func (w *outbound) reserve(c int64) error {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for w.credit < c && !w.closed && !s.ended {
		s.cond.Wait()
	}
	switch {
	case s.ended:
		return s.causeLocked()
	case w.closed:
		return io.ErrClosedPipe
	}
	w.credit -= c
	return nil
}

// Close ends the channel: the peer's reader sees io.EOF after the last byte. A blocked Write returns.
func (w *outbound) Close() error {
	if err := w.s.Accept(); err != nil {
		return err
	}
	w.s.mu.Lock()
	w.closed = true
	ended := w.s.ended
	w.s.cond.Broadcast()
	w.s.mu.Unlock()
	if ended {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.eof {
		return nil
	}
	w.eof = true
	return w.s.sendControl(&skepv1.StreamControl{Control: &skepv1.StreamControl_Eof{Eof: w.name}, Offset: w.offset.Load()})
}

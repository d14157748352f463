package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/spec"
)

const (
	longLine   = 16 << 10  // longer ones are cut into parts, as docker does
	checkpoint = 256 << 10 // how often the position stands in the log
	punchEvery = 256 << 10
)

// follower takes over one task's output.
type follower struct {
	k    *Keeper
	dir  string
	opt  spec.LogOptions
	poll bool

	started bool // under k.mu
	wds     []int32

	kicked chan struct{}
	finish chan struct{} // closed: everything is written, take the rest and end
	stop   chan struct{} // closed: the agent ends
	once   sync.Once
	done   chan struct{}
	err    error

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every write
	ended   bool

	in    [2]source
	w     *os.File
	seq   int
	size  int64
	since int64 // bytes written after the last position
	last  int64 // the newest time given out
}

type source struct {
	f      *os.File
	off    int64 // taken over
	punch  int64 // freed
	buf    []byte
	broken bool // holes are not possible here
}

func newFollower(k *Keeper, dir string, o spec.LogOptions) *follower {
	return &follower{
		k: k, dir: dir, opt: o, kicked: make(chan struct{}, 1), finish: make(chan struct{}), stop: make(chan struct{}),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
}

func (f *follower) kick() {
	select {
	case f.kicked <- struct{}{}:
	default:
	}
}

func (f *follower) halt() { f.once.Do(func() { close(f.stop) }) }

// end tells readers that nothing more will come.
func (f *follower) end() {
	f.mu.Lock()
	if !f.ended {
		f.ended = true
		close(f.changed)
	}
	f.mu.Unlock()
}

func (f *follower) wrote() {
	f.mu.Lock()
	if !f.ended {
		close(f.changed)
		f.changed = make(chan struct{})
	}
	f.mu.Unlock()
}

// news is closed at the next write; ended says there will be none.
func (f *follower) news() (<-chan struct{}, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed, f.ended
}

func (f *follower) run() {
	defer close(f.done)
	if err := f.open(); err != nil {
		f.k.log.Error("open task log", zap.String("dir", f.dir), zap.Error(err))
		f.err = err
		return
	}
	defer f.closeFiles()
	finish := f.finish
	var every <-chan time.Time
	if f.poll {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		every = t.C
	}
	last := false
	for {
		more, err := f.take(last)
		switch {
		case err != nil:
			// A full disk. The raw files keep everything; a task that has ended can be looked at again too.
			f.k.log.Warn("keep container output", zap.String("dir", f.dir), zap.Error(err))
			if last {
				f.err = fmt.Errorf("keep the last output: %w", err)
				return
			}
			select {
			case <-f.stop:
				return
			case <-time.After(time.Second):
			}
			continue
		case more:
			continue
		case last:
			return
		}
		select {
		case <-f.stop:
			return
		case <-finish:
			last, finish = true, nil
		case <-every:
		case <-f.kicked:
			// A moment's patience takes many small writes at once.
			select {
			case <-f.stop:
				return
			case <-finish:
				last, finish = true, nil
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

func (f *follower) closeFiles() {
	for i := range f.in {
		if f.in[i].f != nil {
			_ = f.in[i].f.Close() // only read
		}
	}
	if f.w != nil {
		if err := f.w.Close(); err != nil {
			f.k.log.Warn("close task log", zap.String("dir", f.dir), zap.Error(err))
		}
	}
}

func (f *follower) open() error {
	out, errs := raw(f.dir)
	for i, name := range []string{out, errs} {
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("open output file: %w", err)
		}
		f.in[i].f = file
	}
	seqs, err := list(folder(f.dir))
	if err != nil {
		return err
	}
	if len(seqs) == 0 {
		return f.rotate()
	}
	f.seq = seqs[len(seqs)-1]
	f.w, err = os.OpenFile(fileName(folder(f.dir), f.seq), os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	return f.recover()
}

// recover finds the positions in the raw files from the log itself.
func (f *follower) recover() error {
	st, err := f.w.Stat()
	if err != nil {
		return fmt.Errorf("look at log: %w", err)
	}
	for window := int64(2 * checkpoint); ; window = st.Size() {
		from := max(st.Size()-window, 0)
		b := make([]byte, st.Size()-from)
		if _, err := f.w.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read log: %w", err)
		}
		// Half a record at the end was never taken over.
		whole := bytes.LastIndexByte(b, '\n') + 1
		at := bytes.LastIndex(b[:whole], []byte("\n# "))
		switch {
		case at >= 0:
			at++
		case from == 0 && bytes.HasPrefix(b, []byte("# ")):
			at = 0
		case from > 0:
			continue
		default:
			return f.rotate() // no position in it at all: somebody wrote to it
		}
		f.size = from + int64(whole)
		if f.size != st.Size() {
			if err := f.w.Truncate(f.size); err != nil {
				return fmt.Errorf("mend log: %w", err)
			}
		}
		f.since = int64(whole - at)
		for _, line := range bytes.SplitAfter(b[at:whole], []byte{'\n'}) {
			f.account(line)
		}
		for i := range f.in {
			f.in[i].punch = f.in[i].off &^ 4095
		}
		return nil
	}
}

// account adds one line of the log to the positions.
func (f *follower) account(line []byte) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	if rest, ok := bytes.CutPrefix(line, []byte("# ")); ok {
		a, b, _ := bytes.Cut(rest, []byte{' '})
		f.in[0].off, _ = strconv.ParseInt(string(a), 10, 64)
		f.in[1].off, _ = strconv.ParseInt(string(b), 10, 64)
		return
	}
	e, ok := decode(line)
	if !ok {
		return
	}
	i := 0
	if e.Stderr {
		i = 1
	}
	f.in[i].off += int64(len(e.Line))
	f.last = max(f.last, e.Time)
}

// take moves what there is from the raw files to the log; more says there may be more at once.
func (f *follower) take(last bool) (more bool, err error) {
	var batch bytes.Buffer
	now := max(time.Now().UnixNano(), f.last+1)
	var taken [2]int64
	for i := range f.in {
		s := &f.in[i]
		if s.buf == nil {
			s.buf = make([]byte, 0, 4<<10)
		}
		buf := s.buf[:cap(s.buf)]
		n, err := s.f.ReadAt(buf, s.off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("read output: %w", err)
		}
		if n == len(buf) && n < 64<<10 {
			s.buf = make([]byte, 0, 64<<10) // it talks: read more at a time
			more = true
			continue
		}
		b := buf[:n]
		if n == len(buf) {
			more = true
		}
		for len(b) > 0 {
			line, partial := b, true
			if j := bytes.IndexByte(b, '\n'); j >= 0 && j < longLine {
				line, partial = b[:j], false
			} else if len(b) >= longLine {
				line = b[:longLine]
			} else if !last {
				break // the rest of the line is still to come
			}
			encode(&batch, now, i == 1, partial, line)
			now++
			used := len(line)
			if !partial {
				used++
			}
			taken[i] += int64(used)
			b = b[used:]
		}
	}
	if batch.Len() == 0 {
		for i := range f.in {
			if cap(f.in[i].buf) > 4<<10 && !more {
				f.in[i].buf = nil // quiet again: 64 KiB a task is much for nothing
			}
		}
		return more, nil
	}
	if err := f.write(batch.Bytes()); err != nil {
		return false, err
	}
	f.last = now
	for i := range f.in {
		f.in[i].off += taken[i]
		f.free(&f.in[i])
	}
	if f.size > f.opt.MaxSize {
		err = f.rotate()
	} else if f.since > checkpoint {
		err = f.write(f.position())
		f.since = 0
	}
	f.wrote()
	return more || last, err
}

func (f *follower) position() []byte {
	return fmt.Appendf(nil, "# %d %d\n", f.in[0].off, f.in[1].off)
}

// write appends all of b or nothing.
func (f *follower) write(b []byte) error {
	n, err := f.w.Write(b)
	if err != nil {
		if n > 0 {
			if terr := f.w.Truncate(f.size); terr != nil {
				err = errors.Join(err, terr)
			}
		}
		return fmt.Errorf("write log: %w", err)
	}
	f.size += int64(n)
	f.since += int64(n)
	return nil
}

func (f *follower) rotate() error {
	name := fileName(folder(f.dir), f.seq+1)
	w, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("begin a new log file: %w", err)
	}
	head := f.position()
	if _, err := w.Write(head); err != nil {
		return errors.Join(fmt.Errorf("begin a new log file: %w", err), w.Close(), os.Remove(name))
	}
	old := f.w
	f.w, f.seq, f.size, f.since = w, f.seq+1, int64(len(head)), 0
	if old != nil {
		if err := old.Close(); err != nil {
			return fmt.Errorf("close the old log file: %w", err)
		}
	}
	seqs, err := list(folder(f.dir))
	if err != nil {
		return err
	}
	for _, s := range seqs {
		if s <= f.seq-f.opt.MaxFile {
			if err := os.Remove(fileName(folder(f.dir), s)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove the oldest log file: %w", err)
			}
		}
	}
	return nil
}

// free gives the disk back what was taken over.
func (f *follower) free(s *source) {
	to := s.off &^ 4095
	if s.broken || to-s.punch < punchEvery {
		return
	}
	err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punch, to-s.punch)
	if err != nil {
		s.broken = true
		f.k.log.Warn("cannot free the output already kept: this file system knows no holes", zap.String("dir", f.dir), zap.Error(err))
		return
	}
	s.punch = to
}

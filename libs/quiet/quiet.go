// Package quiet keeps what repeats from filling the log: of each kind of line the first few are written, then one line a
// window says how many more there were.
//
// A kind is a level, a logger's name, a message and the values of the fields named as keys. Messages are constants of the
// code, so that there are few; the keys' values may be a stranger's, and beyond maxKinds they no longer tell kinds apart. What
// still exceeds it is one kind a level.
package quiet

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const maxKinds = 1024

// Options say what is too much.
type Options struct {
	// Burst is how many lines of a kind are written before they are only counted.
	Burst int
	// Window is how long a kind must have been silent to be written again, and how often its count is.
	Window time.Duration
	// Keys are fields whose values tell kinds apart.
	Keys []string
}

// Logger returns log with a bound on what repeats, and what writes the counts that are still owed: nothing is written
// after it.
func Logger(log *zap.Logger, o Options) (quiet *zap.Logger, stop func()) {
	s := &state{Options: o, kinds: map[string]*kind{}}
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{Core: c, s: s} })), s.stop
}

// core is one logger's view of the state: fields it was given by With are remembered for the keys among them.
type core struct {
	zapcore.Core
	s    *state
	with []zapcore.Field
}

type state struct {
	Options
	mu      sync.Mutex
	kinds   map[string]*kind
	stopped bool
}

type kind struct {
	written int
	missed  int
	log     zapcore.Core
	entry   zapcore.Entry
	keys    []zapcore.Field
	timer   *time.Timer
}

// With implements zapcore.Core.
func (c *core) With(f []zapcore.Field) zapcore.Core {
	return &core{Core: c.Core.With(f), s: c.s, with: append(c.with[:len(c.with):len(c.with)], c.s.pick(f)...)}
}

// Check implements zapcore.Core.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *core) Write(e zapcore.Entry, f []zapcore.Field) error {
	if !c.s.allow(c, e, f) {
		return nil
	}
	return c.Core.Write(e, f)
}

func (s *state) pick(f []zapcore.Field) (keys []zapcore.Field) {
	for _, x := range f {
		for _, k := range s.Keys {
			if x.Key == k {
				keys = append(keys, x)
			}
		}
	}
	return keys
}

func (s *state) allow(c *core, e zapcore.Entry, f []zapcore.Field) bool {
	own := s.pick(f)
	name := e.Level.String() + "\x00" + e.LoggerName + "\x00" + e.Message
	full := name
	enc := zapcore.NewMapObjectEncoder()
	for _, k := range append(c.with[:len(c.with):len(c.with)], own...) {
		k.AddTo(enc)
		if v, ok := enc.Fields[k.Key].(string); ok {
			full += "\x00" + v
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return true
	}
	// Too many kinds: what the keys told apart is one, and then the level.
	if s.kinds[full] == nil && len(s.kinds) >= maxKinds {
		full, own = name, nil
		if s.kinds[full] == nil && len(s.kinds) >= 2*maxKinds {
			full = e.Level.String()
		}
	}
	k := s.kinds[full]
	if k == nil {
		k = &kind{}
		s.kinds[full] = k
		k.timer = time.AfterFunc(s.Window, func() { s.elapsed(full, k) })
	}
	if k.written < s.Burst {
		k.written++
		return true
	}
	k.missed++
	k.log, k.entry, k.keys = c.Core, e, own
	return false
}

// elapsed ends a window: a kind that was silent in it is forgotten, else its count is written and the next begins.
func (s *state) elapsed(name string, k *kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	if k.missed == 0 {
		delete(s.kinds, name)
		return
	}
	s.tellLocked(k)
	k.timer.Reset(s.Window)
}

func (s *state) tellLocked(k *kind) {
	k.entry.Time, k.entry.Stack = time.Now(), ""
	_ = k.log.Write(k.entry, append(k.keys, zap.Int("more", k.missed), zap.Duration("within", s.Window))) // a log that cannot be written has nowhere to say so
	k.missed = 0
}

func (s *state) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.stopped = true
	for _, k := range s.kinds {
		k.timer.Stop()
		if k.missed > 0 {
			s.tellLocked(k)
		}
	}
}

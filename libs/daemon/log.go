package daemon

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"skep.dev/libs/logfile"
	"skep.dev/libs/printable"
	"skep.dev/libs/quiet"
)

const (
	// maxText is how much of one text a line of the log holds: names, subjects and errors may be a stranger's, and of any
	// length.
	maxText = 1 << 10
	// perMinute bounds the lines of one kind, far above what an operator would read.
	perMinute = 1000
)

// NewLogger makes the process's logger: readable lines on a terminal, JSON everywhere else. What it writes is bounded:
// texts are cut, kinds of lines that repeat are counted, a file is turned over.
func NewLogger(level string, w io.Writer) (*zap.Logger, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.TimeKey, cfg.MessageKey = "time", "msg"
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	enc := zapcore.NewJSONEncoder(cfg)
	if f, ok := w.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
			cfg.EncodeLevel = zapcore.CapitalColorLevelEncoder
			enc = zapcore.NewConsoleEncoder(cfg)
		}
		w = logfile.New(f, logfile.MaxSize, logfile.Keep)
	}
	log := zap.New(&cutting{zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), l)})
	// The counts of the last minute are lost with the process; what was counted is in the log.
	log, _ = quiet.Logger(log, quiet.Options{Burst: perMinute, Window: time.Minute})
	return log, nil
}

// cutting is a core that takes from texts what does not belong into a log.
type cutting struct{ zapcore.Core }

// With implements zapcore.Core.
func (c *cutting) With(f []zapcore.Field) zapcore.Core { return &cutting{c.Core.With(cutAll(f))} }

// Check implements zapcore.Core.
func (c *cutting) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *cutting) Write(e zapcore.Entry, f []zapcore.Field) error {
	e.Message = strings.ReplaceAll(cut(e.Message), "\n", " ") // on a terminal it is not quoted
	return c.Core.Write(e, cutAll(f))
}

func cutAll(fields []zapcore.Field) []zapcore.Field {
	out := make([]zapcore.Field, len(fields))
	for i, f := range fields {
		switch f.Type {
		case zapcore.StringType:
			f.String = cut(f.String)
		case zapcore.ByteStringType:
			if b, ok := f.Interface.([]byte); ok && f.Key != "stack" {
				f = zap.String(f.Key, cut(string(b[:min(len(b), 2*maxText)])))
			}
		case zapcore.ErrorType:
			// zap's own encoding survives an error that panics; it is the rule for texts that are short enough.
			if err, ok := f.Interface.(error); ok && err != nil {
				if text, ok := textOf(err.Error); ok {
					f = zap.String(f.Key, cut(text))
				}
			}
		case zapcore.StringerType:
			if s, ok := f.Interface.(fmt.Stringer); ok && s != nil {
				if text, ok := textOf(s.String); ok {
					f = zap.String(f.Key, cut(text))
				}
			}
		}
		out[i] = f
	}
	return out
}

// textOf is what say returns, unless it panics as the method of a nil value may: then zap has its own way with it.
func textOf(say func() string) (text string, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	return say(), true
}

// cut keeps the beginning of s, and drops what would move a terminal's cursor or turn text around.
func cut(s string) string {
	n := len(s)
	s = strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && printable.Hidden(r) {
			return utf8.RuneError
		}
		return r
	}, printable.Cut(s, maxText))
	if n > maxText {
		s += fmt.Sprintf("… (%d bytes)", n)
	}
	return s
}

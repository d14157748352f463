package probe

import (
	"strings"
	"sync"
)

// tail keeps the end of a text, whole characters only.
func tail(s string) string {
	if len(s) > OutputLimit {
		s = s[len(s)-OutputLimit:]
	}
	// Statuses travel as UTF-8; a program may print anything, and the cut may be within a character.
	return strings.ToValidUTF8(s, "\uFFFD")
}

// tailWriter keeps the end of what is written to it and takes any amount.
type tailWriter struct {
	mu  sync.Mutex
	buf []byte // the last OutputLimit bytes are what counts
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	if n >= OutputLimit {
		w.buf = append(w.buf[:0], p[n-OutputLimit:]...)
		return n, nil
	}
	if len(w.buf)+n > 2*OutputLimit {
		w.buf = append(w.buf[:0], w.buf[len(w.buf)-OutputLimit:]...)
	}
	w.buf = append(w.buf, p...)
	return n, nil
}

func (w *tailWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return tail(strings.TrimSpace(string(w.buf[max(0, len(w.buf)-OutputLimit):])))
}

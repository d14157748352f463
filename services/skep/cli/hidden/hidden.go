// Package hidden asks a terminal for what it must not show.
package hidden

import (
	"context"
	"io"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"skep.dev/services/skep/cli/plain"
)

// Ask asks a terminal for a line that it does not show, without the line's end. Ctrl-C ends the question, and leaves the
// terminal as it was. w is where the question is put.
func Ask(ctx context.Context, fd int, w io.Writer, prompt string) ([]byte, error) {
	show, err := quiet(fd) // before the prompt: what is typed at once is not shown either
	if err != nil {
		return nil, err
	}
	plain.Notef(w, "%s", prompt)
	b, err := Interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	show()
	plain.Notef(w, "\n")
	return b, err
}

// quiet keeps a terminal from showing what is typed until show is called.
func quiet(fd int) (show func(), err error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t := *before
	t.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &t); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil // a terminal that is gone shows nothing
}

// Interruptible waits for what a terminal gives, or for Ctrl-C, whichever comes first. The read goes on until the process
// ends.
func Interruptible[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := read()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

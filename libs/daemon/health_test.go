package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type sick struct{ err error }

func (s sick) Run(context.Context) error     { return nil }
func (s sick) Close() error                  { return nil }
func (s sick) Healthy(context.Context) error { return s.err }

// What a container engine sees: exit status 1 with a reason until the program serves, then 0.
func TestHealth(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "h", "health.sock")
	m := Main{Name: "skep-x", About: "does x"}
	ask := func(code int, want string) {
		t.Helper()
		var out strings.Builder
		if got := m.run(t.Context(), []string{"-health-socket", socket, "-health"}, &out); got != code || !strings.Contains(out.String(), want) {
			t.Errorf("exit status %d and %q, want %d and %q", got, out.String(), code, want)
		}
	}
	ask(1, "nobody answers")
	var c condition
	stop, err := c.serve(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket is others' too: %v %v", st.Mode(), err)
	}
	ask(1, "it is starting")
	c.is(serving(nil, sick{errors.New("no\ndisk")}))
	ask(1, "skep-x: no disk\n")
	c.is(serving(nil, sick{}))
	ask(0, "")

	// One who comes and neither speaks nor listens holds up nobody.
	mute, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	ask(0, "")

	// A service that hangs is not well.
	c.is(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	began := time.Now()
	ask(1, "deadline exceeded")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the answer took %v", took)
	}

	var out strings.Builder
	if code := m.run(t.Context(), []string{"-health"}, &out); code != 2 || !strings.Contains(out.String(), "needs -health-socket") {
		t.Errorf("exit status %d and %q", code, out.String())
	}
}

package node

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"skep.dev/services/skep/cli/plain"
)

// TestLastWords: a daemon that ends at once is told with the end of its log, line for line, whatever it holds.
func TestLastWords(t *testing.T) {
	p := Paths{Data: t.TempDir(), Run: t.TempDir()}
	var log []byte
	for i := range 12 {
		log = fmt.Appendf(log, "line %d \x1b[2J\n", i)
	}
	if err := os.WriteFile(p.Log(), log, 0o600); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	exited <- errors.New("exit status 1")
	got := plain.Lines(fmt.Errorf("start the node: %w", awaitReady(t.Context(), p, exited)))
	want := []string{"start the node: the daemon ended (exit status 1); the last it said:"}
	for i := 2; i < 12; i++ {
		want = append(want, fmt.Sprintf(`line %d \x1b[2J`, i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// Package leaktest fails the tests of a package that leave goroutines behind.
package leaktest

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Main is TestMain of a package that starts goroutines.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run runs the tests and returns the exit code: that of the tests, or 1 when they pass and something still runs.
func Run(m *testing.M) int {
	code := m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintf(os.Stderr, "the tests passed, and left goroutines behind: %v\n", err)
		return 1
	}
	return 0
}

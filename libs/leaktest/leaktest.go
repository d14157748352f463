// Package leaktest fails the tests of a package that leave goroutines behind.
package leaktest

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// ofTheBroker are goroutines that nats-server itself leaves now and then: a stream that is being made while the server shuts
// down keeps its store open (2.15.2). Only a test's process outlives its broker.
var ofTheBroker = []goleak.Option{
	goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
	goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*msgBlock).flushLoop"),
	goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
}

// Main is TestMain of a package that starts goroutines.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run runs the tests and returns the exit code: that of the tests, or 1 when they pass and something still runs.
func Run(m *testing.M) int {
	code := m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(ofTheBroker...); err != nil {
		fmt.Fprintf(os.Stderr, "the tests passed, and left goroutines behind: %v\n", err)
		return 1
	}
	return 0
}

package reconcile

import (
	"flag"
	"testing"

	"skep.dev/libs/leaktest"
)

// The random cluster deserves more tries than rapid's default of 100; -rapid.checks and -rapid.steps still decide.
func TestMain(m *testing.M) {
	flag.Parse()
	for name, v := range map[string][2]string{"rapid.checks": {"100", "1500"}, "rapid.steps": {"30", "70"}} {
		if f := flag.Lookup(name); f != nil && f.Value.String() == v[0] {
			if err := flag.Set(name, v[1]); err != nil {
				panic(err)
			}
		}
	}
	leaktest.Main(m)
}

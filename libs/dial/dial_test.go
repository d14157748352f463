package dial

import (
	"slices"
	"testing"
	"time"

	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestOrder(t *testing.T) {
	now := time.Now()
	d := New(Config{Home: "home", HomeOutside: "out", Addrs: []string{"home", "a"}, Ordered: true})
	d.Learn([]string{"b", "a", "out"})
	expect := func(what string, at time.Time, want ...string) {
		t.Helper()
		if got := d.order(at); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("all are well", now, "home", "a", "b", "out")
	d.failed["a"] = now.Add(-time.Second)
	expect("one failed", now, "home", "b", "out", "a")
	d.failed["home"] = now
	expect("home failed", now, "b", "a", "home", "out")
	expect("a while later", now.Add(time.Minute), "home", "a", "b", "out")

	// The connection that was left tells how the manager stands.
	l := &line{addr: "home"}
	d.last = l
	l.at.Store(now.UnixNano())
	expect("left because we wanted to", now.Add(100*time.Millisecond), "home", "a", "b", "out")
	expect("it was silent", now.Add(2*time.Second), "a", "b", "home", "out")
	d.failed = map[string]time.Time{}
	l.broken.Store(true)
	expect("it broke", now, "a", "b", "home", "out")

	// What is not told any more is forgotten, what was given is not.
	d = New(Config{Addrs: []string{"a"}, Ordered: true})
	d.Learn([]string{"x"})
	d.failed["x"] = now
	d.Learn(nil)
	if expect("nobody is told", now, "a"); len(d.failed) > 0 {
		t.Errorf("%v is remembered", d.failed)
	}
}

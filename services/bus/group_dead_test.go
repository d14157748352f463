package bus

import (
	"testing"
	"time"
)

// Of three managers one dies and is removed, and another is demoted at the same moment: one stays, with everything.
func TestOneDiesAndOneIsDemoted(t *testing.T) {
	f := found(t, "m2", "m3")
	f.await(1, true, "m1-1")
	for _, n := range []string{"m2", "m3"} {
		f.role(n, true)
		f.members[n].run()
	}
	f.await(3, false, "m1-1", "m2-1", "m3-1")
	f.members["m3"].stop()
	f.removeNode("m3")
	if err := await(within(t), 20*time.Millisecond, patience, func() bool { return f.list().GetSet().GetReplicas() == 1 }); err != nil {
		t.Fatalf("the set is %v", f.list())
	}
	f.role("m2", false)
	f.members["m2"].retired()
	f.await(1, true, "m1-1")
}

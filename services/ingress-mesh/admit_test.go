package mesh

import (
	"strings"
	"testing"

	"skep.dev/libs/id"
)

// A task's link is apart from other tasks' from the moment it is there, not once the mesh next looks at its ports.
func TestAttachedApart(t *testing.T) {
	r := newRig(t)
	r.start()
	for range 5 {
		task := id.New()
		r.attach(task)
		out := run(t, "bridge", "-d", "link", "show", "dev", vethName(task))
		if !strings.Contains(out, "isolated on") && !strings.Contains(out, "hairpin on") {
			t.Errorf("a port as it was made:\n%s", out)
		}
	}
}

// A task's link that somebody took off the bridge comes back apart from other tasks' too.
func TestRejoinedApart(t *testing.T) {
	r := newRig(t)
	r.start()
	task := id.New()
	r.attach(task)
	run(t, "ip", "link", "set", vethName(task), "nomaster")
	r.attach(task)
	out := run(t, "bridge", "-d", "link", "show", "dev", vethName(task))
	if !strings.Contains(out, "isolated on") && !strings.Contains(out, "hairpin on") {
		t.Errorf("a port as it came back:\n%s", out)
	}
}

package bus

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
)

// A store that is lost twice, the second time before its node counts as a manager again: the two others never lack a majority,
// and the node is taken back.
func TestStoreLostTwice(t *testing.T) {
	f := found(t, "m2", "m3")
	creds := pkitest.Store(t, f.ca, pki.Identity{NodeID: idOf("writer"), Role: pki.Manager}, time.Hour)
	l := startWriters(t, creds, 2, f.addrs...)
	if err := created(t, l.js, "a"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"m2", "m3"} {
		f.role(n, true)
		f.members[n].run()
	}
	f.await(3, false, "m1-1", "m2-1", "m3-1")
	for range 2 {
		m := f.members["m3"]
		m.stop()
		if err := os.RemoveAll(filepath.Join(m.cfg.DataDir, "main")); err != nil {
			t.Fatal(err)
		}
		m.start()
	}
	f.await(3, false, "m1-1", "m2-1", "m3-3")
	l.halt()
	l.verify("at the end")
}

// One manager is demoted while another, which is dead, is removed for good, in either order: what stays is the third alone.
func TestDeadAndDemoted(t *testing.T) {
	for _, first := range []string{"demoted", "removed"} {
		t.Run(first+" first", func(t *testing.T) {
			f := found(t, "m2", "m3")
			for _, n := range []string{"m2", "m3"} {
				f.role(n, true)
				f.members[n].run()
			}
			f.await(3, false, "m1-1", "m2-1", "m3-1")
			f.members["m3"].stop()
			if first == "removed" {
				f.removeNode("m3")
			}
			f.role("m2", false)
			if first == "demoted" {
				f.said("no majority of the 3 servers is there")
				f.removeNode("m3")
			}
			f.members["m2"].retired()
			f.await(1, true, "m1-1")
		})
	}
}

package nsfs

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func names(t *testing.T, path string) (n int) {
	t.Helper()
	err := In(path, func() error {
		l, err := net.Interfaces()
		n = len(l)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMakeOpenKeepRemove(t *testing.T) {
	home, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	path := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { _ = Remove(path) })
	if At(path) {
		t.Fatal("a namespace where there is no file")
	}
	if _, _, err := Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	// As a crash between the file and the mount leaves it.
	if err := os.WriteFile(path, nil, 0o400); err != nil || At(path) {
		t.Fatal(err, "a plain file counts as a namespace")
	}
	if _, _, err := Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	ns, h, err := Make(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	defer h.Close()
	links, err := h.LinkList()
	if err != nil || len(links) != 1 || names(t, path) != 1 {
		t.Fatal(links, err)
	}
	id, ok := IDAt(path)
	if got, err := IDOf(ns); !ok || err != nil || got != id {
		t.Fatal(id, ok, got, err)
	}
	if own, err := IDOf(home); err != nil || own == id {
		t.Fatal("the new namespace is the host's", err)
	}
	again, h2, err := Make(path)
	if err != nil {
		t.Fatal(err)
	}
	h2.Close()
	defer again.Close()
	if got, _ := IDOf(again); got != id {
		t.Fatal("Make made a second namespace over the first")
	}
	// Unmounted by somebody while it is open: it can be kept again.
	if err := Remove(path); err != nil || At(path) {
		t.Fatal(err)
	}
	if err := Keep(ns, path); err != nil {
		t.Fatal(err)
	}
	if got, ok := IDAt(path); !ok || got != id {
		t.Fatal("another namespace was kept")
	}
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil { // twice
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestThreadsComeBack(t *testing.T) {
	home, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	want, _ := IDOf(home)
	path := filepath.Join(t.TempDir(), "ns")
	ns, h, err := Make(path)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	defer ns.Close()
	t.Cleanup(func() { _ = Remove(path) })
	boom := errors.New("boom")
	for range 50 {
		if err := Inside(ns, func() error { return boom }); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		done := make(chan ID)
		for range 4 {
			go func() {
				ns, err := Current()
				if err != nil {
					t.Error(err)
				}
				id, _ := IDOf(ns)
				_ = ns.Close()
				done <- id
			}()
		}
		for range 4 {
			if got := <-done; got != want {
				t.Fatal("a thread stayed in the other namespace")
			}
		}
	}
	if err := Inside(netns.NsHandle(-1), func() error { t.Error("ran"); return nil }); err == nil {
		t.Fatal("entered nothing")
	}
}

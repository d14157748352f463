package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/volume"
	"golang.org/x/sys/unix"

	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// host is the plug-in of one host; all of a test share a store. The mounts are real: this needs root.
func host(t *testing.T, s store, name string) *driver {
	t.Helper()
	dir := t.TempDir()
	d := &driver{store: s, host: name, scope: "global", ids: filepath.Join(dir, "ids"), mnt: filepath.Join(dir, "mnt")}
	t.Cleanup(func() {
		names, _ := s.names()
		for _, n := range names {
			if at := d.point(n); mounted(at) {
				if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return d
}

// A volume is one host's at a time, for as many tasks as that has, and another's once the last one is done or the host was cut off.
func TestOneHostAtATime(t *testing.T) {
	s := store{t.TempDir()}
	a, b := host(t, s, "a"), host(t, s, "b")
	mount := func(d *driver, id string) error {
		r, err := d.Mount(&volume.MountRequest{Name: "web", ID: id})
		if err == nil && !mounted(r.Mountpoint) {
			t.Errorf("nothing is mounted at %s", r.Mountpoint)
		}
		return err
	}
	unmount := func(d *driver, id string) error { return d.Unmount(&volume.UnmountRequest{Name: "web", ID: id}) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err error, words string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v, want %q", err, words)
		}
	}
	refused(mount(a, "1"), "no such volume")
	must(a.Create(&volume.CreateRequest{Name: "web"}))
	refused(b.Create(&volume.CreateRequest{Name: "web"}), "exists already")
	must(mount(a, "1"))
	must(mount(a, "1"))
	must(mount(a, "2"))
	refused(mount(b, "3"), "attached to host a")
	refused(b.Remove(&volume.RemoveRequest{Name: "web"}), "attached to host a")
	refused(unmount(b, "3"), "not mounted")
	must(os.WriteFile(filepath.Join(a.point("web"), "file"), []byte("data"), 0o644))
	must(unmount(a, "1"))
	refused(unmount(a, "1"), "not mounted")
	refused(mount(b, "3"), "attached to host a")
	must(unmount(a, "2"))
	must(mount(b, "3"))
	if got, err := os.ReadFile(filepath.Join(b.point("web"), "file")); err != nil || string(got) != "data" {
		t.Errorf("on the other host: %q %v", got, err)
	}

	// Host b dies and is cut off: what it opens now is not there, and the data is a's.
	refused(mount(a, "4"), "attached to host b")
	must(s.forceDetach("b"))
	must(mount(a, "4"))
	if got, err := os.ReadFile(filepath.Join(a.point("web"), "file")); err != nil || string(got) != "data" {
		t.Errorf("after the cut: %q %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(b.point("web"), "late"), nil, 0o644); err == nil {
		t.Error("a host that was cut off writes")
	}
	var out bytes.Buffer
	must(s.list(&out))
	if out.String() != "web\ta\n" {
		t.Errorf("ls: %q", out.String())
	}
	// And a is started anew: it knows of no mount, and gives the volume back all the same.
	must(unix.Unmount(a.point("web"), unix.MNT_DETACH))
	must(os.RemoveAll(a.ids))
	must(unmount(a, "4"))
	must(mount(b, "5"))
}

func TestFaults(t *testing.T) {
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Mountpoint":"/x"}`) })}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(inner) }()
	defer func() { _ = srv.Close(); <-ended }()
	dir := t.TempDir()
	h := faulty(dir, inner.Addr().String())
	for what, want := range map[string]string{"": `{"Mountpoint":"/x"}`, "garbage": "not JSON", "error no room": `{"Err":"no room"}`, "slow 1ms": `{"Mountpoint":"/x"}`} {
		if err := os.WriteFile(filepath.Join(dir, "Mount"), []byte(what+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/VolumeDriver.Mount", nil))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q: %q", what, w.Body)
		}
	}
}

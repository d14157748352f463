package member_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skep.dev/libs/member"
)

// The runtime's own pages are on the control socket, which only root can open, and take profiles by name.
func TestProfilesOnTheControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.sock")
	c := member.NewControl(member.Info{}, func(context.Context, bool) error { return nil })
	if err := c.Serve(path); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", st, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	for page, has := range map[string]string{
		"": "heap", "heap?gc=1&debug=1": "# HeapAlloc = ", "goroutine?debug=1": "goroutine profile: total ", "allocs?debug=1": "# HeapReleased = ",
	} {
		r, err := client.Get("http://node/debug/pprof/" + page)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(body), has) {
			t.Errorf("page %q: %s %v, without %q", page, r.Status, err, has)
		}
	}
	// It shows no arguments of the process and takes no names apart.
	for _, page := range []string{"cmdline", "symbol"} {
		r, err := client.Get("http://node/debug/pprof/" + page)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusNotFound {
			t.Errorf("page %q: %s", page, r.Status)
		}
	}
}

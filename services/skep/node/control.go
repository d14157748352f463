package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Info is what GET /info on the control socket answers.
type Info struct {
	NodeID       string   `json:"node_id"`
	ClusterID    string   `json:"cluster_id"`
	Role         string   `json:"role"`
	Hostname     string   `json:"hostname"`
	Addr         string   `json:"addr"`
	ManagerAddrs []string `json:"manager_addrs"`
	Version      string   `json:"version"`
	State        string   `json:"state"` // starting, ready, leaving
	Error        string   `json:"error,omitempty"`
	PID          int      `json:"pid"`
}

// control is the daemon's local HTTP interface for root on this machine: who are we, are we ready, leave.
type control struct {
	srv   *http.Server
	leave func(ctx context.Context, force bool) error

	mu   sync.Mutex
	info Info
	done chan struct{} // closed when the state is not "starting" any more
}

func newControl(info Info, leave func(context.Context, bool) error) *control {
	info.State, info.PID = "starting", os.Getpid()
	return &control{info: info, leave: leave, done: make(chan struct{})}
}

// serve listens on the socket, which only root can open.
func (c *control) serve(path string) error {
	l, err := listenUnix(path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.snapshot()) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-c.done:
		case <-r.Context().Done():
			return
		case <-time.After(time.Minute):
		}
		writeJSON(w, c.snapshot())
	})
	mux.HandleFunc("POST /leave", func(w http.ResponseWriter, r *http.Request) {
		if err := c.leave(r.Context(), r.URL.Query().Get("force") == "true"); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		writeJSON(w, c.snapshot())
	})
	c.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go c.srv.Serve(l) //nolint:errcheck // it returns when it is closed
	return nil
}

func (c *control) snapshot() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

func (c *control) ready() { c.settle("ready", nil) }

func (c *control) settle(state string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.State = state
	if err != nil {
		c.info.Error = err.Error()
	}
	select {
	case <-c.done:
	default:
		close(c.done)
	}
}

func (c *control) close() {
	if c.srv != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := c.srv.Shutdown(ctx); err != nil {
			c.srv.Close()
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The client is gone if this fails; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(v)
}

// listenUnix makes a socket of mode 0600 in a directory of mode 0700, over a stale one of a daemon that is gone.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", filepath.Dir(path), err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: another skep daemon does already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the stale socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// controlClient talks to the daemon of this machine.
func controlClient(p Paths) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", p.control())
	}}}
}

// Running asks the daemon of this machine who it is; an error when none answers.
func Running(ctx context.Context, p Paths) (Info, error) { return ask(ctx, p, http.MethodGet, "/info") }

func ask(ctx context.Context, p Paths, method, path string) (Info, error) {
	var info Info
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, nil)
	if err != nil {
		return info, err
	}
	resp, err := controlClient(p).Do(req)
	if err != nil {
		return info, fmt.Errorf("ask the skep daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var b [4096]byte
		n, _ := resp.Body.Read(b[:])
		return info, errors.New(string(b[:max(0, n-1)]))
	}
	return info, json.NewDecoder(resp.Body).Decode(&info)
}

package member

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"os"
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
	// Warning is what a leave that succeeded could not do.
	Warning string `json:"warning,omitempty"`
	// Refused: the managers did not let this new manager in, and nothing of the node was started.
	Refused bool `json:"refused,omitempty"`
	PID     int  `json:"pid"`
	// Upgrade is what went wrong with the last one.
	Upgrade string `json:"upgrade,omitempty"`
}

// Control is the daemon's local HTTP interface for root on this machine: who are we, are we ready, leave.
type Control struct {
	// CA is the cluster's CA, PEM: what a command on this machine checks the vault's key against. Set before Serve.
	CA func() []byte

	link  func(context.Context) Link
	srv   *http.Server
	leave func(ctx context.Context, force bool) error

	mu   sync.Mutex
	info Info
	done chan struct{} // closed when the state is not "starting" any more
}

// NewControl prepares the interface; leave is called by POST /leave.
func NewControl(info Info, leave func(context.Context, bool) error) *Control {
	info.State, info.PID = "starting", os.Getpid()
	return &Control{info: info, leave: leave, done: make(chan struct{})}
}

// Serve listens on the socket, which only root can open.
func (c *Control) Serve(path string) error {
	l, err := ListenUnix(path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.snapshot()) })
	mux.HandleFunc("GET /ca", func(w http.ResponseWriter, _ *http.Request) {
		if c.CA == nil {
			http.Error(w, "the node has no certificate yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(c.CA()) // as in writeJSON
	})
	mux.HandleFunc("GET /link", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		look := c.link
		c.mu.Unlock()
		if look == nil {
			http.Error(w, "the node does not turn to the managers yet", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, look(r.Context()))
	})
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
	profiles(mux)
	c.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	go c.srv.Serve(l) //nolint:errcheck // it returns when it is closed
	return nil
}

// profiles adds the Go runtime's own pages, /debug/pprof/heap and its neighbours: what the process spends memory and time on,
// for whoever looks after it. They show what is in memory, as root may look anyway; nothing is measured until somebody asks.
func profiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // and every profile by its name
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

func (c *Control) snapshot() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// Change changes what is answered.
func (c *Control) Change(f func(*Info)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.info)
}

// Links says how the node stands with the managers from now on, nil = nobody knows.
func (c *Control) Links(look func(context.Context) Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = look
}

// Starting reports whether the node is neither ready yet nor anything else.
func (c *Control) Starting() bool { return c.snapshot().State == "starting" }

// Ready says that the node serves.
func (c *Control) Ready() { c.Settle("ready", nil) }

// Settle ends "starting": the node is ready, leaving, or has failed.
func (c *Control) Settle(state string, err error) {
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

// Close takes the socket away.
func (c *Control) Close() {
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

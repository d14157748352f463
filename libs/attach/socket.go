package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"skep.dev/libs/fault"
)

// wireError is how a fault travels over the socket.
type wireError struct {
	Code    fault.Code `json:"code"`
	Message string     `json:"message"`
}

type detachRequest struct {
	TaskID string `json:"task_id"`
}

type listReply struct {
	Tasks []string `json:"tasks"`
}

// maxBody bounds a request; a reply may be as long as a node has tasks.
const maxBody = 1 << 20

// Server offers an Attacher on a unix socket.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Serve offers a on the unix socket at path (mode 0600: root of this node only). A socket nobody listens on is
// replaced, one that is in use is an error.
func Serve(path string, a Attacher) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("prepare the directory of %s: %w", path, err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("serve on %s: another process serves it already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace the stale socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("serve on %s: %w", path, err)
	}
	// The directory is 0700, so nobody else could connect before this.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("protect %s: %w", path, err)
	}
	mux := http.NewServeMux()
	route(mux, "POST /attach", func(ctx context.Context, r Request) (Attachment, error) { return a.Attach(ctx, r) })
	route(mux, "POST /detach", func(ctx context.Context, r detachRequest) (struct{}, error) {
		return struct{}{}, a.Detach(ctx, r.TaskID)
	})
	route(mux, "POST /drain", func(ctx context.Context, r detachRequest) (struct{}, error) {
		return struct{}{}, a.Drain(ctx, r.TaskID)
	})
	route(mux, "POST /list", func(ctx context.Context, _ struct{}) (listReply, error) {
		ids, err := a.List(ctx)
		return listReply{Tasks: ids}, err
	})
	s := &Server{http: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // ends by Close
	}()
	return s, nil
}

// Close stops serving, waits a moment for requests in work, and removes the socket.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	return err
}

func route[Q, R any](mux *http.ServeMux, pattern string, h func(context.Context, Q) (R, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
		var q Q
		status, body := http.StatusOK, any(nil)
		if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxBody)).Decode(&q); err != nil {
			status, body = http.StatusBadRequest, wireError{fault.CodeInvalid, "cannot read the request: " + err.Error()}
		} else if r, err := h(req.Context(), q); err != nil {
			status, body = http.StatusInternalServerError, wireError{fault.Of(err), err.Error()}
		} else {
			body = r
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body) // a caller that left does not read it
	})
}

// Client is an Attacher behind a socket.
type Client struct {
	path string
	http *http.Client
}

var _ Attacher = (*Client)(nil)

// Dial returns the Attacher served at path. It connects at each call, so the mesh may restart in between.
func Dial(path string) *Client {
	var d net.Dialer
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		MaxIdleConns:    8,
		IdleConnTimeout: 30 * time.Second,
	}}}
}

// Close frees idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Attach implements Attacher.
func (c *Client) Attach(ctx context.Context, r Request) (Attachment, error) {
	var a Attachment
	err := c.call(ctx, "attach", r, &a)
	return a, err
}

// Drain implements Attacher.
func (c *Client) Drain(ctx context.Context, taskID string) error {
	return c.call(ctx, "drain", detachRequest{taskID}, &struct{}{})
}

// Detach implements Attacher.
func (c *Client) Detach(ctx context.Context, taskID string) error {
	return c.call(ctx, "detach", detachRequest{taskID}, &struct{}{})
}

// List implements Attacher.
func (c *Client) List(ctx context.Context) ([]string, error) {
	var r listReply
	err := c.call(ctx, "list", struct{}{}, &r)
	return r.Tasks, err
}

func (c *Client) call(ctx context.Context, verb string, q, r any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode the %s request: %w", verb, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://mesh/"+verb, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the mesh to %s: %w", verb, err)
	}
	// Every request is idempotent: one that met a connection the mesh closed meanwhile is sent again.
	req.Header.Set("Idempotency-Key", verb)
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ask the mesh to %s: %w", verb, ctx.Err())
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fault.Unavailable("the node's mesh does not answer on %s: is skep-mesh running?", c.path)
	case err != nil:
		return fault.Unavailable("ask the mesh to %s: %v", verb, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fault.Unavailable("read the mesh's answer to %s: %v", verb, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e wireError
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			return fault.New(fault.CodeInternal, "the mesh answered %s to %s", resp.Status, verb)
		}
		return fault.New(e.Code, "%s", e.Message)
	}
	if err := json.Unmarshal(b, r); err != nil {
		return fmt.Errorf("read the mesh's answer to %s: %w", verb, err)
	}
	return nil
}

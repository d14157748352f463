package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Limits of a server. A zero one is the usual.
type Limits struct {
	// Connections at once. One more is answered 503 and closed.
	Connections int
	// Requests under way at once, and Streams, which stay open: followers of logs and events. One more is answered 503.
	Requests, Streams int
	// Body is how many bytes of a request's body are read.
	Body int64
	// HeaderTime is how long a client may take over its headers, BodyTime over its body.
	HeaderTime, BodyTime time.Duration
}

func (l Limits) filled() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Connections, 1024)
	def(&l.Requests, 256)
	def(&l.Streams, 256)
	if l.Body == 0 {
		l.Body = 2 << 20 // a config of 1,000 KiB is 1.4 MB as JSON; a spec has less
	}
	if l.HeaderTime == 0 {
		l.HeaderTime = 10 * time.Second
	}
	if l.BodyTime == 0 {
		l.BodyTime = 30 * time.Second
	}
	return l
}

// Config of a server.
type Config struct {
	Routes Routes
	Limits Limits
	Log    *zap.Logger
	// Server is what it calls itself, such as skep/0.1.0.
	Server string
	// May decides who may come, by the connection; nil = everybody. An error is answered to each of the connection's requests.
	May func(net.Conn) error
}

// Server serves the API on a listener.
type Server struct {
	cfg      Config
	limits   Limits
	http     *http.Server
	conns    atomic.Int64
	requests chan struct{}
	streams  chan struct{}

	served, refused, panics atomic.Uint64
}

// Counts is what a server has done since it was made.
type Counts struct {
	Served, Refused, Panics        uint64
	Connections, Requests, Streams int
}

// NewServer checks nothing and starts nothing.
func NewServer(cfg Config) *Server {
	s := &Server{cfg: cfg, limits: cfg.Limits.filled()}
	s.requests, s.streams = make(chan struct{}, s.limits.Requests), make(chan struct{}, s.limits.Streams)
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: s.limits.HeaderTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: zap.NewStdLog(cfg.Log.WithOptions(zap.IncreaseLevel(zap.WarnLevel))), ConnContext: s.greet,
	}
	return s
}

// Serve answers until Shutdown; it returns nil then.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(&limited{Listener: l, s: s})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown waits for what is under way, for as long as ctx lasts, and then cuts it off.
func (s *Server) Shutdown(ctx context.Context) {
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // it was told to end: what it says of its connections helps nobody
	}
}

// Counts are for metrics.
func (s *Server) Counts() Counts {
	return Counts{s.served.Load(), s.refused.Load(), s.panics.Load(), int(s.conns.Load()), len(s.requests), len(s.streams)}
}

type strangerKey struct{}

// greet decides on a connection before its first request.
func (s *Server) greet(ctx context.Context, c net.Conn) context.Context {
	if s.cfg.May == nil {
		return ctx
	}
	if held, ok := c.(*heldConn); ok {
		c = held.Conn
	}
	if err := s.cfg.May(c); err != nil {
		return context.WithValue(ctx, strangerKey{}, err)
	}
	return ctx
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	h := w.Header()
	h.Set("Api-Version", Newest.String())
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", s.cfg.Server+" (linux)")
	out := &written{ResponseWriter: w}
	defer func() {
		p := recover()
		switch {
		case p == nil:
		case p == http.ErrAbortHandler: //nolint:errorlint // what net/http compares
			panic(p)
		default:
			s.panics.Add(1)
			s.cfg.Log.Error("a request made the program fail", zap.String("method", hr.Method), zap.String("path", hr.URL.Path), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			if out.begun {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
			writeError(w, Errorf(http.StatusInternalServerError, "internal error"))
		}
	}()
	if err := s.serve(out, hr); err != nil {
		s.refused.Add(1)
		if out.begun {
			if hr.Context().Err() == nil {
				s.cfg.Log.Warn("an answer broke off", zap.String("path", hr.URL.Path), zap.Error(err))
			}
			panic(http.ErrAbortHandler)
		}
		writeError(out, err)
		return
	}
	s.served.Add(1)
}

func (s *Server) serve(w *written, hr *http.Request) error {
	if err, stranger := hr.Context().Value(strangerKey{}).(error); stranger {
		return err
	}
	v, path, err := cutVersion(hr.URL.EscapedPath())
	if err != nil {
		return err
	}
	route, vars, err := s.cfg.Routes.find(hr.Method, path)
	if err != nil {
		return err
	}
	query, err := url.ParseQuery(hr.URL.RawQuery)
	if err != nil {
		return Invalid("invalid query: %v", err)
	}
	places := s.requests
	if route.Stream {
		places = s.streams
	}
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		w.Header().Set("Retry-After", "1")
		return Unavailable("too many requests at once: %d are being answered; try again", cap(places))
	}
	limit := route.Body
	if limit == 0 {
		limit = s.limits.Body
	}
	// A body that dribbles in holds its place for so long at most. The server's own request keeps its body: by that it knows what
	// is left unread, which it then reads away or, if it is much, closes the connection for.
	if hr.ContentLength != 0 {
		timed := http.NewResponseController(w.ResponseWriter)
		_ = timed.SetReadDeadline(time.Now().Add(s.limits.BodyTime)) // a recorder of tests has none
		own := *hr
		own.Body = &readBody{ReadCloser: http.MaxBytesReader(w.ResponseWriter, hr.Body, limit), done: func() { _ = timed.SetReadDeadline(time.Time{}) }}
		hr = &own
	}
	if hr.ContentLength > limit {
		return &http.MaxBytesError{Limit: limit}
	}
	return route.Do(w, &Request{Request: hr, Version: v, Query: query, vars: vars})
}

// readBody takes the deadline of reading off once the body is read to its end: what follows may be a stream of hours.
type readBody struct {
	io.ReadCloser
	done func()
}

func (b *readBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.done()
	}
	return n, err
}

// written knows whether the answer has begun.
type written struct {
	http.ResponseWriter
	begun bool
}

func (w *written) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *written) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *written) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// limited counts connections.
type limited struct {
	net.Listener
	s *Server
}

const tooMany = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 53\r\n\r\n" +
	`{"message":"too many connections at once: try again"}`

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.s.conns.Add(1) <= int64(l.s.limits.Connections) {
			return &heldConn{Conn: c, s: l.s}, nil
		}
		l.s.conns.Add(-1)
		l.s.refused.Add(1)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // it is closed either way
		_, _ = io.WriteString(c, tooMany)
		_ = c.Close()
	}
}

// heldConn gives its place back when it is closed.
type heldConn struct {
	net.Conn
	s    *Server
	once atomic.Bool
}

func (c *heldConn) Close() error {
	if !c.once.Swap(true) {
		c.s.conns.Add(-1)
	}
	return c.Conn.Close()
}

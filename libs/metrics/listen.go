package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/ownaddr"
)

const page = `<!DOCTYPE html><title>skep</title><h1>skep</h1><p><a href="/metrics">Metrics</a> for Prometheus</p>` + "\n"

// Check refuses an address that nothing could listen on, or not now. It is for commands that keep the address for later.
func Check(addr string) error {
	l, err := listen(addr)
	if err != nil {
		return err
	}
	return l.Close()
}

func listen(addr string) (net.Listener, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.Invalid("metrics address %q: want HOST:PORT, such as 127.0.0.1:9323", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fault.Invalid("metrics address %q: port %q is not between 1 and 65535", addr, port)
	}
	l, err := net.Listen("tcp", addr)
	if ownaddr.Absent(err) {
		return nil, absent{fault.Invalid("metrics address %q: this machine has no such address; name one of its own with --metrics-addr", addr)}
	}
	if err != nil {
		var reason *net.OpError
		if errors.As(err, &reason) {
			err = reason.Err
		}
		return nil, fault.Invalid("metrics address %q: cannot listen there: %v; name an address of this machine and a free port with --metrics-addr", addr, err)
	}
	return l, nil
}

// absent: the machine does not have the address, which after a reboot it may have later.
type absent struct{ error }

func (a absent) Unwrap() []error { return []error{a.error, syscall.EADDRNOTAVAIL} }

// lookEvery is how often an address is looked for that is not there yet.
const lookEvery = time.Second

// Server is the listener of a process.
type Server struct {
	srv  *http.Server
	done chan struct{}
	end  context.CancelFunc // of the wait for the address
}

// Serve listens on addr (host:port) and answers GET /metrics from what reg gathers, until Close. An address that this
// machine does not have yet is waited for, meanwhile nothing is served: numbers are no reason to keep a node down.
func Serve(addr string, reg prometheus.Gatherer, log *zap.Logger) (*Server, error) {
	return serve(addr, reg, log, listen)
}

func serve(addr string, reg prometheus.Gatherer, log *zap.Logger, listen func(string) (net.Listener, error)) (*Server, error) {
	l, err := listen(addr)
	if err != nil && !ownaddr.Absent(err) {
		return nil, err
	}
	std := zap.NewStdLog(log)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		// One part that cannot be read must not hide the others; the log says which it was.
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: std, MaxRequestsInFlight: 4, Timeout: 30 * time.Second,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, page) // the reader may be gone
	})
	s := &Server{
		srv:  &http.Server{Handler: mux, ErrorLog: std, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute},
		done: make(chan struct{}),
	}
	waiting, end := context.WithCancel(context.Background())
	s.end = end
	go func() {
		defer close(s.done)
		if l == nil {
			log.Warn("metrics are not served yet: waiting for the address", zap.Error(err))
			if l, err = await(waiting, addr, listen); l == nil {
				if err != nil {
					log.Error("metrics are not served", zap.Error(err))
				}
				return
			}
		}
		log.Info("serving metrics", zap.String("addr", l.Addr().String()))
		if err := s.srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", zap.Error(err))
		}
	}()
	return s, nil
}

// await listens once the machine has the address; nil without an error when ctx ended first.
func await(ctx context.Context, addr string, listen func(string) (net.Listener, error)) (net.Listener, error) {
	var l net.Listener
	err := ownaddr.Await(ctx, lookEvery, func() (err error) {
		l, err = listen(addr)
		return err
	})
	if ctx.Err() != nil && l == nil {
		return nil, nil
	}
	return l, err
}

// Close ends the listener; scrapes under way get a second to finish.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.end()
	err := s.srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.srv.Close()
	}
	<-s.done
	if err != nil {
		return fmt.Errorf("close the metrics listener: %w", err)
	}
	return nil
}

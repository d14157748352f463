package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

const (
	// ttl, in seconds: see the package's documentation.
	ttl = 1
	// maxForwards are the queries that may be waiting for name servers, of all tasks and of one.
	maxForwards, maxTaskForwards = 1024, 256
	// maxUpstreams are the name servers that are tried.
	maxUpstreams = 3
	// defaultTimeout is how long one name server is given. Clients give up, by default, after five seconds.
	defaultTimeout = 2 * time.Second
)

// Config is what a Server needs.
type Config struct {
	Log *zap.Logger // nil: none
	// Upstreams gives the host's own name servers. It is called for every query that is forwarded; nil stands for none.
	Upstreams func() []netip.AddrPort
	// Timeout is how long each name server is waited for; 0 stands for two seconds.
	Timeout time.Duration
}

// Server is the resolver of all tasks of a node. It is safe for concurrent use.
type Server struct {
	cfg   Config
	mu    sync.Mutex
	tasks map[string]*task
	slots chan struct{} // one for each query that is forwarded
	count counters
}

type counters struct{ queries, local, forwarded, answered, refused, truncated, failures, overloads atomic.Uint64 }

// Stats counts since the start.
type Stats struct {
	// Tasks is the number of tasks that are served now.
	Tasks int
	// Queries were asked; Local were answered from the tables, Forwarded were sent to a name server. The rest was
	// malformed or of a kind that is not served.
	Queries, Local, Forwarded uint64
	// Answered are those a name server answered, Refused those that were malformed or of a kind that is not served.
	Answered, Refused uint64
	// Truncated answers did not fit into a datagram, Failures is SERVFAIL, and Overloads those of them which were not
	// tried since too many were under way.
	Truncated, Failures, Overloads uint64
}

// New is a Server of no task.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	return &Server{cfg: cfg, tasks: map[string]*task{}, slots: make(chan struct{}, maxForwards)}
}

// view is what a task's queries are answered from.
type view struct {
	zone        Zone
	nameservers []netip.AddrPort
}

// Open serves the task whose network namespace is at path from z. Names that are not z's are asked of nameservers, or
// of the host's if there are none. For a task that is served already, z and nameservers take the place of the former
// ones; if its namespace has been made anew, so are the sockets. The loopback device of the namespace has to be up.
func (s *Server) Open(id, path string, z Zone, nameservers []netip.AddrPort) error {
	ns, ok := nsfs.IDAt(path)
	if !ok {
		return fmt.Errorf("open the resolver of task %s: there is no network namespace at %s", id, path)
	}
	v := &view{z, nameservers}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil {
		if t.ns == ns {
			t.view.Store(v)
			return nil
		}
		t.close()
		delete(s.tasks, id)
	}
	t := &task{s: s, id: id, ns: ns}
	t.life, t.end = context.WithCancel(context.Background())
	t.view.Store(v)
	if err := t.listen(path); err != nil {
		t.end()
		return fmt.Errorf("open the resolver of task %s: %w", id, err)
	}
	s.tasks[id] = t
	return nil
}

// Close stops serving a task; its sockets are free when it returns. A task that is not served is no error.
func (s *Server) Close(id string) {
	s.mu.Lock()
	t := s.tasks[id]
	delete(s.tasks, id)
	s.mu.Unlock()
	if t != nil {
		t.close()
	}
}

// Shutdown closes all tasks.
func (s *Server) Shutdown() {
	s.mu.Lock()
	all := s.tasks
	s.tasks = map[string]*task{}
	s.mu.Unlock()
	for _, t := range all {
		t.close()
	}
}

// Stats gives the counts.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.tasks)
	s.mu.Unlock()
	c := &s.count
	return Stats{
		Tasks: n, Queries: c.queries.Load(), Local: c.local.Load(), Forwarded: c.forwarded.Load(), Answered: c.answered.Load(), Refused: c.refused.Load(),
		Truncated: c.truncated.Load(), Failures: c.failures.Load(), Overloads: c.overloads.Load(),
	}
}

var errOverloaded = errors.New("too many queries are waiting for name servers")

// reserve takes a place among the queries that are forwarded, and gives what gives it back.
func (s *Server) reserve(t *task) (release func(), err error) {
	if t.forwards.Add(1) > maxTaskForwards {
		t.forwards.Add(-1)
		return nil, errOverloaded
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots; t.forwards.Add(-1) }, nil
	default:
		t.forwards.Add(-1)
		return nil, errOverloaded
	}
}

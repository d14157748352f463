package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/fault"
	"skep.dev/libs/mask"
	"skep.dev/libs/subject"
)

// Config describes a service to `nats micro ls`.
type Config struct {
	Name        string // skep-state
	Version     string // semantic version; anything else becomes 0.0.0
	Description string
	Log         *zap.Logger
	// Parallel bounds the requests in work at once (default 256); more wait in order.
	Parallel int
	// Timeout ends a handler's context (default 60 s).
	Timeout time.Duration
	// Metrics is where requests are counted, nil = nowhere.
	Metrics prometheus.Registerer
}

// Server is a nats micro service.
type Server struct {
	nc     *nats.Conn
	svc    micro.Service
	log    *zap.Logger
	slots  chan struct{}
	limit  time.Duration
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	meter  *meter
	nodes  nodeLimits

	mu     sync.Mutex
	faults map[string]map[fault.Code]uint64 // by endpoint and code, for `nats micro stats`
	closed bool
}

// NewServer registers the service; endpoints follow by Handle.
func NewServer(nc *nats.Conn, cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 256
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = time.Minute
	}
	v := strings.TrimPrefix(cfg.Version, "v")
	if strings.Count(v, ".") != 2 || strings.ContainsAny(v, " /") {
		v = "0.0.0"
	}
	meter, err := newMeter(cfg.Metrics, cfg.Name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		nc: nc, meter: meter, log: cfg.Log, slots: make(chan struct{}, cfg.Parallel), limit: cfg.Timeout, ctx: ctx, cancel: cancel,
		faults: map[string]map[fault.Code]uint64{},
	}
	s.svc, err = micro.AddService(nc, micro.Config{
		StatsHandler: func(e *micro.Endpoint) any { return s.stats(e.Subject) },
		Name:         cfg.Name, Version: v, Description: cfg.Description, QueueGroup: subject.Queue,
		ErrorHandler: func(_ micro.Service, e *micro.NATSError) {
			cfg.Log.Warn("endpoint error", zap.String("subject", e.Subject), zap.String("err", e.Description))
		},
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("register service %s: %w", cfg.Name, err)
	}
	return s, nil
}

func (s *Server) count(endpoint string, code fault.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults[endpoint] == nil {
		s.faults[endpoint] = map[fault.Code]uint64{}
	}
	s.faults[endpoint][code]++
}

// stats is the data of an endpoint in `nats micro stats`: the faults it answered, by code.
func (s *Server) stats(endpoint string) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return struct {
		Faults map[fault.Code]uint64 `json:"faults,omitempty"`
	}{maps.Clone(s.faults[endpoint])}
}

// Close stops taking requests, cancels those in work and waits for them.
func (s *Server) Close() error {
	err := s.svc.Stop()
	s.cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

// begin counts a request as in work, unless the server is closed: one that was handed over while it closes is dropped.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// inboxPrefix begins every inbox: _INBOX.<…> by default, _INBOX_<identity>.<…> for those the broker knows.
const inboxPrefix = "_INBOX"

type replyKey struct{}

// ReplyTo is the inbox the request in work is answered to; its first token names the asking connection.
func ReplyTo(ctx context.Context) string {
	s, _ := ctx.Value(replyKey{}).(string)
	return s
}

// message is a pointer to T that is a protobuf message.
type message[T any] interface {
	*T
	proto.Message
}

// Handle serves a subject in the queue group: any instance of the service may answer.
func Handle[Q, R any, PQ message[Q], PR message[R]](s *Server, subj string, h func(context.Context, PQ) (PR, error)) error {
	return handle(s, subj, false, func(ctx context.Context, _ string, q PQ) (PR, error) { return h(ctx, q) })
}

// HandleDirect serves a subject without a queue group: for what one certain node or instance answers.
func HandleDirect[Q, R any, PQ message[Q], PR message[R]](s *Server, subj string, h func(context.Context, PQ) (PR, error)) error {
	return handle(s, subj, false, func(ctx context.Context, _ string, q PQ) (PR, error) { return h(ctx, q) }, micro.WithEndpointQueueGroupDisabled())
}

// HandleNode serves skep.v1.svc.<service>.<verb>.* and passes the last token, the node that asks: the broker lets
// a node publish to its own token only, so it can be trusted. A node that asks too much is refused before its request
// is read (limit.go).
func HandleNode[Q, R any, PQ message[Q], PR message[R]](s *Server, service, verb string, h func(ctx context.Context, node string, q PQ) (PR, error)) error {
	return handle(s, subject.Svc(service, verb, "*"), true, h)
}

func handle[Q, R any, PQ message[Q], PR message[R]](s *Server, subj string, byNode bool, h func(context.Context, string, PQ) (PR, error), extra ...micro.EndpointOpt) error {
	var q PQ = new(Q)
	var r PR = new(R)
	opts := append([]micro.EndpointOpt{
		micro.WithEndpointSubject(subj),
		micro.WithEndpointMetadata(map[string]string{
			"request":  string(q.ProtoReflect().Descriptor().FullName()),
			"response": string(r.ProtoReflect().Descriptor().FullName()),
		}),
	}, extra...)
	fn := func(req micro.Request) {
		// The broker does not check where a request wants its reply: published with our rights, it could go to a key or to
		// another service's endpoint. Inboxes are the only place for it.
		if to := req.Reply(); to != "" && !strings.HasPrefix(to, inboxPrefix) {
			s.log.Warn("refused a request: its reply subject is not an inbox", zap.String("subject", req.Subject()), zap.String("reply", to))
			return
		}
		done := func() {}
		if byNode {
			node := lastToken(req.Subject())
			ok, tell := s.nodes.begin(node, len(req.Data()), time.Now())
			if tell {
				s.fail(subj, req, fault.Unavailable("node %s asks too much of this manager: it reads %d requests a second from a node", node, nodeRate))
			}
			if !ok {
				return
			}
			done = func() { s.nodes.end(node) }
		}
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			done()
			return
		}
		if !s.begin() {
			<-s.slots
			done()
			return
		}
		began := time.Now()
		go func() {
			defer s.wg.Done()
			defer done()
			defer func() { <-s.slots }()
			code := serve(s, subj, req, h)
			s.meter.served(subj, code, began)
		}()
	}
	if err := s.svc.AddEndpoint(endpointName(subj), micro.HandlerFunc(fn), opts...); err != nil {
		return fmt.Errorf("serve %s: %w", subj, err)
	}
	// Whoever is told now that the service is ready must find it: the broker has the subscription when it has answered
	// a ping. Without a connection it gets it on the reconnect.
	if s.nc.IsConnected() {
		if err := s.nc.FlushTimeout(flushWithin); err != nil {
			s.log.Debug("flush", zap.String("subject", subj), zap.Error(err))
		}
	}
	return nil
}

const flushWithin = 2 * time.Second

func serve[Q, R any, PQ message[Q], PR message[R]](s *Server, endpoint string, req micro.Request, h func(context.Context, string, PQ) (PR, error)) (code fault.Code) {
	ctx, cancel := context.WithTimeout(s.ctx, s.limit)
	defer cancel()
	ctx = WithTrace(ctx, req.Headers().Get(HeaderTrace))
	ctx = context.WithValue(ctx, replyKey{}, req.Reply())
	defer func() {
		// One request must not take the service down; the stack is for us, the caller gets an internal fault.
		if p := recover(); p != nil {
			s.log.Error("panic in handler", zap.String("subject", req.Subject()), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			code = fault.CodeInternal
			s.reply(req, ErrorReply(fault.CodeInternal, "internal error; the manager's log has the details"))
		}
	}()
	var q PQ = new(Q)
	isJSON, err := Decode(req.Data(), req.Headers().Get(HeaderContentType), q)
	if err != nil {
		return s.fail(endpoint, req, fault.Invalid("cannot read the request to %s: %v", req.Subject(), err))
	}
	reply, err := h(ctx, lastToken(req.Subject()), q)
	if err != nil {
		return s.fail(endpoint, req, err)
	}
	if subject.IsViewerInbox(req.Reply()) {
		reply = mask.ForViewer(reply)
	}
	if a := req.Headers().Get(HeaderAccept); a != "" {
		isJSON = a == TypeJSON
	}
	body, err := Encode(reply, isJSON)
	if err != nil {
		return s.fail(endpoint, req, fmt.Errorf("encode the reply: %w", err))
	}
	ct := TypeProto
	if isJSON {
		ct = TypeJSON
	}
	m := nats.NewMsg("")
	m.Data = body
	m.Header.Set(HeaderContentType, ct)
	m.Header.Set(HeaderType, string(reply.ProtoReflect().Descriptor().FullName()))
	s.reply(req, m)
	return ok
}

func lastToken(subj string) string { return subj[strings.LastIndexByte(subj, '.')+1:] }

// reply answers over the connection itself: micro's own Respond and Error write into the request, which micro reads
// as soon as its handler returns, and ours returns at once.
func (s *Server) reply(req micro.Request, m *nats.Msg) {
	if m.Subject = req.Reply(); m.Subject == "" {
		return // nobody asked for an answer
	}
	if err := s.nc.PublishMsg(m); err != nil {
		s.log.Warn("reply not sent", zap.String("subject", req.Subject()), zap.Error(err))
	}
}

// ErrorReply is an answer in micro's form of an error.
func ErrorReply(code fault.Code, text string) *nats.Msg {
	m := nats.NewMsg("")
	m.Header.Set(micro.ErrorHeader, text)
	m.Header.Set(micro.ErrorCodeHeader, string(code))
	return m
}

// fail answers with the fault that err is, and returns its code.
func (s *Server) fail(endpoint string, req micro.Request, err error) fault.Code {
	code := fault.Of(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		code = fault.CodeUnavailable
	}
	if code == fault.CodeInternal {
		s.log.Error("request failed", zap.String("subject", req.Subject()), zap.Error(err))
	}
	// Header values end at the line.
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	s.count(endpoint, code)
	s.reply(req, ErrorReply(code, text))
	return code
}

// endpointName turns skep.v1.api.service.create into service-create: micro allows no dots in names.
func endpointName(subj string) string {
	t := strings.Split(strings.TrimSuffix(subj, ".*"), ".")
	if len(t) > 3 {
		t = t[3:]
	}
	name := strings.Trim(strings.ReplaceAll(strings.Join(t, "-"), "*", ""), "-")
	if name == "" {
		return "endpoint"
	}
	return name
}

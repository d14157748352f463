package rpc

import (
	"context"
	"errors"
	"fmt"
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
	// Quorum knows whether the managers have a leader (libs/quorum), nil for what answers without a store. The server
	// closes it.
	Quorum Quorum
}

// Server is a service in the form of NATS' micro services.
type Server struct {
	nc     *nats.Conn
	mon    *monitor
	log    *zap.Logger
	slots  chan struct{}
	limit  time.Duration
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	meter  *meter
	nodes  nodeLimits
	quorum Quorum

	open context.Context // ends when no request is taken any more, ctx when those in work are to end
	shut context.CancelFunc

	mu     sync.Mutex
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
	cfg.Version = v
	mon, err := newMonitor(nc, cfg)
	if err != nil {
		return nil, fmt.Errorf("register service %s: %w", cfg.Name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	open, shut := context.WithCancel(ctx)
	return &Server{
		nc: nc, mon: mon, meter: meter, log: cfg.Log, slots: make(chan struct{}, cfg.Parallel), limit: cfg.Timeout, ctx: ctx, cancel: cancel, quorum: cfg.Quorum, open: open, shut: shut,
	}, nil
}

// finishWithin is how long requests in work may go on once their server closes. It is far more than one takes while the store has
// a leader, and little for whoever waits for the end of a service whose store has none.
const finishWithin = time.Second

// Close stops taking requests and turns those away that have arrived and are not in work. Those in work have a second to end, are
// canceled then, and waited for.
func (s *Server) Close() error {
	err := s.mon.close()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.shut()
	late := time.AfterFunc(finishWithin, s.cancel)
	defer late.Stop()
	defer s.cancel()
	s.mon.drained()
	s.wg.Wait()
	if s.quorum != nil {
		s.quorum.Close()
	}
	return err
}

// begin counts a request as in work, unless the server is closed: one that was handed over while it closes comes too late.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

// take waits for a place; false: the server closes.
func (s *Server) take() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	case <-s.open.Done():
		return false
	}
}

// turnAway answers a request that came while the server closes as the broker answers one that nobody listens to: nothing
// was done, and whoever asks may ask the next instance at once. Unanswered it would wait for its whole deadline.
func (s *Server) turnAway(req *nats.Msg) {
	m := nats.NewMsg("")
	m.Header.Set(headerStatus, statusNobody)
	s.reply(req, m)
}

// How a broker says that nobody listens (NATS ADR-9).
const (
	headerStatus = "Status"
	statusNobody = "503"
)

type replyKey struct{}

// ReplyTo is the inbox the request in work is answered to.
func ReplyTo(ctx context.Context) string {
	s, _ := ctx.Value(replyKey{}).(string)
	return s
}

// fresh is an empty message of a type, which is a pointer to a generated one.
func fresh[M proto.Message]() M {
	var m M
	return m.ProtoReflect().New().Interface().(M)
}

// Handle serves a subject in the queue group: any instance of the service may answer.
func Handle[Q, R proto.Message](s *Server, subj string, h func(context.Context, Q) (R, error)) error {
	return handle(s, subj, nil, func(ctx context.Context, _ string, q Q) (R, error) { return h(ctx, q) }, subject.Queue)
}

// HandleDirect serves a subject without a queue group: for what one certain node or instance answers.
func HandleDirect[Q, R proto.Message](s *Server, subj string, h func(context.Context, Q) (R, error)) error {
	return handle(s, subj, nil, func(ctx context.Context, _ string, q Q) (R, error) { return h(ctx, q) }, "")
}

// HandleNode serves a subject whose last token is *, the node that asks, and passes that: the broker lets a node publish
// to its own token only, so it can be trusted. A node that asks too much is refused before its request is read (limit.go).
func HandleNode[Q, R proto.Message](s *Server, subj string, h func(ctx context.Context, node string, q Q) (R, error)) error {
	return handle(s, subj, &s.nodes, h, subject.Queue)
}

// handle serves a subject; limits, unless nil, are those of the nodes that ask.
func handle[Q, R proto.Message](s *Server, subj string, limits *nodeLimits, h func(context.Context, string, Q) (R, error), queue string) error {
	var q Q
	var r R
	info := micro.EndpointInfo{Name: endpointName(subj), Subject: subj, QueueGroup: queue, Metadata: map[string]string{
		"request":  string(q.ProtoReflect().Descriptor().FullName()),
		"response": string(r.ProtoReflect().Descriptor().FullName()),
	}}
	fn := func(e *endpoint, req *nats.Msg) {
		req.Subject = subject.FromNear(req.Subject) // from here on it is the same request
		if req.Reply != "" && !mayHear(s.log, req) {
			return
		}
		if !s.begin() {
			s.turnAway(req)
			return
		}
		late := func() {
			defer s.wg.Done()
			s.turnAway(req)
		}
		answer := func() {
			defer s.wg.Done()
			defer func() { <-s.slots }()
			began := time.Now()
			code, text := serve(s, req, h)
			s.meter.served(subj, code, began)
			e.served(code, text, time.Since(began))
		}
		if limits == nil {
			if !s.take() {
				late()
				return
			}
			go answer()
			return
		}
		node := lastToken(req.Subject)
		n, tell := limits.begin(node, len(req.Data), time.Now())
		if tell {
			s.fail(req, fault.Unavailable("node %s asks too much of this manager: it reads %d requests a second from a node", node, nodeRate))
		}
		if n == nil {
			s.wg.Done()
			return
		}
		go func() {
			defer limits.end(n)
			if !n.turn(s.open) || !s.take() {
				late()
				return
			}
			answer()
		}()
	}
	// People ask on a subject of their own, which proves who they are (subject.By).
	also := []string{subject.ByAnybody(subj)}
	if queue != "" {
		also = alsoOn(subj)
	}
	if err := s.mon.add(info, fn, also...); err != nil {
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

// mayHear reports whether a request may be answered where it asks, and logs it if not. The broker does not check that:
// published with our rights, an answer could go to a key, to another service's endpoint or into somebody else's inbox.
func mayHear(log *zap.Logger, req *nats.Msg) bool {
	may := subject.MayHear(req.Subject, req.Reply)
	if !may {
		log.Warn("refused a request: who may ask has no such inbox", zap.String("subject", req.Subject), zap.String("reply", req.Reply))
	}
	return may
}

const flushWithin = 2 * time.Second

// serve answers one request and returns the code of the answer, and its text if that is a fault.
func serve[Q, R proto.Message](s *Server, req *nats.Msg, h func(context.Context, string, Q) (R, error)) (code fault.Code, text string) {
	ctx, cancel := context.WithTimeout(s.ctx, s.limit)
	defer cancel()
	ctx = WithTrace(ctx, req.Header.Get(HeaderTrace))
	ctx = context.WithValue(ctx, replyKey{}, req.Reply)
	ctx = WithActor(ctx, ActorFrom(req.Subject, req.Reply))
	defer func() {
		// One request must not take the service down; the stack is for us, the caller gets an internal fault.
		if p := recover(); p != nil {
			s.log.Error("panic in handler", zap.String("subject", req.Subject), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			code, text = fault.CodeInternal, "internal error; the manager's log has the details"
			s.reply(req, ErrorReply(code, text))
		}
	}()
	ctx, err := withMark(ctx, req)
	if err != nil {
		return s.fail(req, err)
	}
	q := fresh[Q]()
	isJSON, err := Decode(req.Data, req.Header.Get(HeaderContentType), q)
	if err != nil {
		return s.fail(req, fault.Invalid("cannot read the request to %s: %v", req.Subject, err))
	}
	reply, err := h(ctx, lastToken(req.Subject), q)
	if err != nil {
		return s.fail(req, err)
	}
	if subject.IsViewerInbox(req.Reply) {
		reply = mask.ForViewer(reply)
	}
	if a := req.Header.Get(HeaderAccept); a != "" {
		isJSON = a == TypeJSON
	}
	body, err := Encode(reply, isJSON)
	if err != nil {
		return s.fail(req, fmt.Errorf("encode the reply: %w", err))
	}
	ct := TypeProto
	if isJSON {
		ct = TypeJSON
	}
	m := nats.NewMsg("")
	m.Data = body
	m.Header.Set(HeaderContentType, ct)
	m.Header.Set(HeaderType, string(reply.ProtoReflect().Descriptor().FullName()))
	s.mark(m)
	s.reply(req, m)
	return ok, ""
}

// alsoOn is where else what any instance may answer is asked: by people, and by those beside it.
func alsoOn(subj string) []string {
	people := subject.ByAnybody(subj)
	return []string{people, subject.Near(subj), subject.Near(people)}
}

func lastToken(subj string) string { return subj[strings.LastIndexByte(subj, '.')+1:] }

func (s *Server) reply(req *nats.Msg, m *nats.Msg) {
	if m.Subject = req.Reply; m.Subject == "" {
		return // nobody asked for an answer
	}
	if err := s.nc.PublishMsg(m); err != nil {
		s.log.Warn("reply not sent", zap.String("subject", req.Subject), zap.Error(err))
	}
}

// ErrorReply is an answer in micro's form of an error. Header values end at the line, so the text is made one.
func ErrorReply(code fault.Code, text string) *nats.Msg {
	m := nats.NewMsg("")
	m.Header.Set(micro.ErrorHeader, strings.ReplaceAll(text, "\n", "; "))
	m.Header.Set(micro.ErrorCodeHeader, string(code))
	return m
}

// fail answers with the fault that err is, and returns its code and text.
func (s *Server) fail(req *nats.Msg, err error) (fault.Code, string) {
	code := fault.Of(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		code = fault.CodeUnavailable
	}
	if code == fault.CodeInternal {
		s.log.Error("request failed", zap.String("subject", req.Subject), zap.Error(err))
	}
	m := ErrorReply(code, strings.TrimSpace(err.Error()))
	s.reply(req, m)
	return code, m.Header.Get(micro.ErrorHeader)
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

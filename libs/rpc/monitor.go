package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
)

// monitor answers `nats micro ls, info, stats`: the $SRV subjects of NATS' micro services. micro.AddService would do that too,
// but it answers wherever a request says, with the service's rights to publish.
type monitor struct {
	nc      *nats.Conn
	log     *zap.Logger
	ident   micro.ServiceIdentity
	about   string
	started time.Time
	subs    []*nats.Subscription

	mu        sync.Mutex
	endpoints []*endpoint
}

// endpoint is a subject the service answers on, and what it answered.
type endpoint struct {
	info  micro.EndpointInfo
	subs  []*nats.Subscription
	ended []chan struct{} // each closed when the last message of its subscription was handed over

	mu     sync.Mutex
	stats  micro.EndpointStats
	faults map[fault.Code]uint64
}

func newMonitor(nc *nats.Conn, cfg Config) (*monitor, error) {
	m := &monitor{
		nc: nc, log: cfg.Log, about: cfg.Description, started: time.Now().UTC(),
		ident: micro.ServiceIdentity{Name: cfg.Name, ID: id.New(), Version: cfg.Version, Metadata: map[string]string{}},
	}
	for verb, answer := range map[micro.Verb]func() any{
		micro.PingVerb:  func() any { return micro.Ping{ServiceIdentity: m.ident, Type: micro.PingResponseType} },
		micro.InfoVerb:  func() any { return m.info() },
		micro.StatsVerb: func() any { return m.stats() },
	} {
		for _, to := range [][2]string{{}, {cfg.Name}, {cfg.Name, m.ident.ID}} {
			subj, err := micro.ControlSubject(verb, to[0], to[1])
			if err == nil {
				err = m.listen(subj, answer)
			}
			if err != nil {
				_ = m.close() // err says what is wrong
				return nil, err
			}
		}
	}
	return m, nil
}

func (m *monitor) listen(subj string, answer func() any) error {
	sub, err := m.nc.Subscribe(subj, func(q *nats.Msg) {
		if !mayHear(m.log, q) {
			return
		}
		body, err := json.Marshal(answer())
		if err == nil {
			err = m.nc.Publish(q.Reply, body)
		}
		if err != nil {
			m.log.Warn("reply not sent", zap.String("subject", q.Subject), zap.Error(err))
		}
	})
	if err == nil {
		m.subs = append(m.subs, sub)
	}
	return err
}

// add serves a subject, and others unless they are empty; an empty queue means that every instance answers.
func (m *monitor) add(info micro.EndpointInfo, h func(*endpoint, *nats.Msg), also ...string) error {
	e := &endpoint{info: info, faults: map[fault.Code]uint64{}}
	e.stats = micro.EndpointStats{Name: info.Name, Subject: info.Subject, QueueGroup: info.QueueGroup}
	for _, subj := range append([]string{info.Subject}, also...) {
		if subj == "" {
			continue
		}
		sub, err := m.nc.QueueSubscribe(subj, info.QueueGroup, func(q *nats.Msg) { h(e, q) })
		if err != nil {
			for _, s := range e.subs {
				_ = s.Unsubscribe() // err says what is wrong
			}
			return err
		}
		ended := make(chan struct{})
		sub.SetClosedHandler(func(string) { close(ended) })
		e.subs, e.ended = append(e.subs, sub), append(e.ended, ended)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints = append(m.endpoints, e)
	return nil
}

// served counts an answer; text is that of its fault.
func (e *endpoint) served(code fault.Code, text string, took time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &e.stats
	s.NumRequests++
	s.ProcessingTime += took
	s.AverageProcessingTime = s.ProcessingTime / time.Duration(s.NumRequests)
	if code != ok {
		s.NumErrors++
		s.LastError = string(code) + ": " + text
		e.faults[code]++
	}
}

func (m *monitor) all() []*endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.endpoints)
}

func (m *monitor) info() micro.Info {
	i := micro.Info{ServiceIdentity: m.ident, Type: micro.InfoResponseType, Description: m.about, Endpoints: []micro.EndpointInfo{}}
	for _, e := range m.all() {
		i.Endpoints = append(i.Endpoints, e.info)
	}
	return i
}

// stats are those of micro, with the faults by code as an endpoint's data.
func (m *monitor) stats() micro.Stats {
	s := micro.Stats{ServiceIdentity: m.ident, Type: micro.StatsResponseType, Started: m.started, Endpoints: []*micro.EndpointStats{}}
	for _, e := range m.all() {
		e.mu.Lock()
		es := e.stats
		data, err := json.Marshal(struct {
			Faults map[fault.Code]uint64 `json:"faults,omitempty"`
		}{e.faults})
		e.mu.Unlock()
		if err != nil {
			m.log.Warn("faults not shown", zap.String("subject", es.Subject), zap.Error(err))
		} else {
			es.Data = data
		}
		s.Endpoints = append(s.Endpoints, &es)
	}
	return s
}

// close takes no more requests; those that have arrived are still handed over.
func (m *monitor) close() error {
	var errs []error
	stop := func(sub *nats.Subscription) {
		if err := sub.Drain(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
			errs = append(errs, fmt.Errorf("stop serving %s: %w", sub.Subject, err))
		}
	}
	for _, e := range m.all() {
		for _, sub := range e.subs {
			stop(sub)
		}
	}
	for _, sub := range m.subs {
		stop(sub)
	}
	// Whoever asks after this finds nobody: the broker knows once it has answered a ping.
	if m.nc.IsConnected() {
		if err := m.nc.FlushTimeout(flushWithin); err != nil {
			m.log.Debug("flush", zap.Error(err))
		}
	}
	return errors.Join(errs...)
}

// drained waits until everything that had arrived when the monitor was closed was handed over.
func (m *monitor) drained() {
	if !m.nc.IsConnected() {
		return // nothing arrives, and the client would wait for a broker
	}
	late := time.NewTimer(flushWithin)
	defer late.Stop()
	for _, e := range m.all() {
		for _, ended := range e.ended {
			select {
			case <-ended:
			case <-late.C:
				return
			}
		}
	}
}

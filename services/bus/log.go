package bus

import (
	"fmt"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
)

// serverLog passes the embedded server's log on. Its Fatalf, which nats-server expects to end the process, reports the
// error to whoever runs the server instead.
type serverLog struct {
	log      *zap.SugaredLogger
	fatal    chan error
	stopping atomic.Bool // connections that break while we stop are no news
}

func newServerLog(log *zap.Logger) *serverLog {
	return &serverLog{log: log.WithOptions(zap.AddCallerSkip(2)).Sugar(), fatal: make(chan error, 1)}
}

// expected warnings describe how skep runs on purpose: no operator would act on them.
var expected = []string{
	`Clients that are not using "TLS Handshake First"`,
	"Waiting for routing to be established",
	"JetStream has not established contact with a meta leader",
	"Metalayer blocking snapshot",
	"quorum lowered 2 -> 2", // see kick
	"quorum updated to 2",
	"Self-advertised",
}

// Noticef: what nats-server finds notable is rarely what an operator acts on.
func (l *serverLog) Noticef(f string, a ...any) { l.log.Debugf(f, a...) }
func (l *serverLog) Debugf(f string, a ...any)  { l.log.Debugf(f, a...) }
func (l *serverLog) Tracef(f string, a ...any)  { l.log.Debugf(f, a...) }

func (l *serverLog) Errorf(f string, a ...any) {
	if l.stopping.Load() {
		l.log.Debugf(f, a...)
		return
	}
	// What strangers do at our port is not our error.
	if text := fmt.Sprintf(f, a...); strings.Contains(text, "TLS handshake error") || strings.Contains(text, "authentication error") {
		l.log.Info(text)
		return
	}
	l.log.Errorf(f, a...)
}

// Warnf passes warnings on, except the expected.
func (l *serverLog) Warnf(f string, a ...any) {
	text := fmt.Sprintf(f, a...)
	for _, e := range expected {
		if strings.Contains(text, e) || l.stopping.Load() {
			l.log.Debug(text)
			return
		}
	}
	l.log.Warn(text)
}

func (l *serverLog) Fatalf(f string, a ...any) {
	err := fmt.Errorf(f, a...)
	l.log.Errorf("the embedded server stopped: %v", err)
	select {
	case l.fatal <- err:
	default:
	}
}

package bus

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/quiet"
)

// serverLog passes the embedded server's log on. Its Fatalf, which nats-server expects to end the process, reports the
// error to whoever runs the server instead.
type serverLog struct {
	log      *zap.SugaredLogger
	client   func(cid uint64, text string) // what a client did wrong
	fatal    chan error
	stopping atomic.Bool // connections that break while we stop are no news
}

func newServerLog(log *zap.Logger, client func(uint64, string)) *serverLog {
	return &serverLog{log: log.WithOptions(zap.AddCallerSkip(2)).Sugar(), client: client, fatal: make(chan error, 1)}
}

// expected warnings describe how skep runs on purpose: no operator would act on them.
var expected = []string{
	`Clients that are not using "TLS Handshake First"`,
	"Waiting for routing to be established",
	"JetStream has not established contact with a meta leader",
	"Metalayer blocking snapshot",
	"quorum lowered 2 -> 2", // see hurry
	"quorum updated to 2",
	"Self-advertised",
}

// aboutClient: nats-server begins what it says about a connection with its address and number. What the client calls
// itself comes after.
var aboutClient = regexp.MustCompile(`^\S+ - cid:(\d+) - `)

// violation is how nats-server says that a connection did what it may not; there is no other notice of it.
var violation = regexp.MustCompile(`(Publish|Subscription) Violation - (Subject|Reply) "`)

// Noticef: what nats-server finds notable is rarely what an operator acts on.
func (l *serverLog) Noticef(f string, a ...any) { l.log.Debugf(f, a...) }
func (l *serverLog) Debugf(f string, a ...any)  { l.log.Debugf(f, a...) }
func (l *serverLog) Tracef(f string, a ...any)  { l.log.Debugf(f, a...) }

func (l *serverLog) Errorf(f string, a ...any) {
	if l.stopping.Load() {
		l.log.Debugf(f, a...)
		return
	}
	text := fmt.Sprintf(f, a...)
	if !l.passed(text) {
		l.log.Error(text)
	}
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
	if !l.passed(text) {
		l.log.Warn(text)
	}
}

// passed hands on what is about a client: what others do at our port is not our error.
func (l *serverLog) passed(text string) bool {
	m := aboutClient.FindStringSubmatch(text)
	if m == nil || l.client == nil {
		return false
	}
	cid, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil {
		return false
	}
	l.client(cid, text)
	return true
}

func (l *serverLog) Fatalf(f string, a ...any) {
	err := fmt.Errorf(f, a...)
	l.log.Errorf("the embedded server stopped: %v", err)
	select {
	case l.fatal <- err:
	default:
	}
}

// slip logs what a client did wrong, and cuts it off if it goes on with what it may not. nats-server may hold locks.
func (b *Bus) slip(cid uint64, text string) {
	b.slips.Warn("a client's mistake", zap.String("node", strangers(b.guests.who(cid))), zap.String("text", text))
	if violation.MatchString(text) {
		b.guests.mistake(cid)
	}
}

// strangers is the identity in a log line: those without one are one kind, whatever they call themselves.
func strangers(id string) string {
	if id == "" || strings.HasPrefix(id, "join-") {
		return "none"
	}
	return id
}

// hush makes the loggers for what clients do: mistakes, which differ, and refusals, where one line says it all.
func (b *Bus) hush() {
	var stop [2]func()
	keys := []string{"node"}
	b.slips, stop[0] = quiet.Logger(b.log, quiet.Options{Burst: 5, Window: time.Minute, Keys: keys})
	b.refusals, stop[1] = quiet.Logger(b.log, quiet.Options{Burst: 1, Window: 10 * time.Minute, Keys: keys})
	b.unhush = func() { stop[0](); stop[1]() }
}

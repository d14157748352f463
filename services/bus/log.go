package bus

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"skep.dev/libs/quiet"
)

// serverLog passes the embedded server's log on. Its Fatalf, which nats-server expects to end the process, reports the
// error to whoever runs the server instead.
type serverLog struct {
	log      *zap.SugaredLogger
	peer     func(cid uint64, text string) // what a peer did wrong; cid is 0 unless it is a client of the main server
	fatal    chan error
	stopping atomic.Bool // connections that break while we stop are no news
}

func newServerLog(log *zap.Logger, peer func(uint64, string)) *serverLog {
	return &serverLog{log: log.WithOptions(zap.AddCallerSkip(2)).Sugar(), peer: peer, fatal: make(chan error, 1)}
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
	// While managers come and go. What lasts, the group says (group_lead.go), and `skep doctor`.
	"detected stream remapping", "detected consumer remapping", "could not replace peer for stream",
	"resetting first sequence", "Falling behind in health check", "Got an error loading",
	"has NO quorum, stalled",
	`Unknown account "JOIN_`,                            // another manager's, which it keeps to itself (joinAccount)
	"hostname of solicited routes will not be verified", // they are: pki.RouteTLS does it
}

// aboutPeer: nats-server begins what it says about a connection with its address and number (cid, of a route rid). What the
// peer calls itself comes after.
var aboutPeer = regexp.MustCompile(`^\S+ - ([a-z]+id):(\d+) - `)

// violation is how nats-server says that a connection did what it may not; there is no other notice of it.
var violation = regexp.MustCompile(`(Publish|Subscription) Violation - (Subject|Reply) "`)

// Noticef: what nats-server finds notable is rarely what an operator acts on.
func (l *serverLog) Noticef(f string, a ...any) { l.log.Debugf(f, a...) }
func (l *serverLog) Debugf(f string, a ...any)  { l.log.Debugf(f, a...) }
func (l *serverLog) Tracef(f string, a ...any)  { l.log.Debugf(f, a...) }

func (l *serverLog) Errorf(f string, a ...any) { l.say(zap.ErrorLevel, fmt.Sprintf(f, a...)) }
func (l *serverLog) Warnf(f string, a ...any)  { l.say(zap.WarnLevel, fmt.Sprintf(f, a...)) }

// say passes on what is not expected.
func (l *serverLog) say(level zapcore.Level, text string) {
	if l.stopping.Load() || slices.ContainsFunc(expected, func(e string) bool { return strings.Contains(text, e) }) {
		l.log.Debug(text)
		return
	}
	if !l.passed(text) {
		l.log.Log(level, text)
	}
}

// passed hands on what is about a peer: what others do at our ports is not our error.
func (l *serverLog) passed(text string) bool {
	m := aboutPeer.FindStringSubmatch(text)
	if m == nil {
		return false
	}
	cid := uint64(0) // nobody's
	if m[1] == "cid" {
		cid, _ = strconv.ParseUint(m[2], 10, 64) // a number too large is nobody's
	}
	l.peer(cid, text)
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

// slip logs what a peer did wrong, and cuts it off if it goes on with what it may not. nats-server may hold locks.
func (b *Bus) slip(cid uint64, text string) {
	b.slips.Warn("a peer's mistake", zap.String("node", strangers(b.guests.who(cid))), zap.String("text", text))
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

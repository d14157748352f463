package daemon

import (
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
)

// maxPause is how long a node that the managers refuse waits between two attempts. One that joined a moment ago may be
// refused until every manager knows it, so the first pauses are short; one that was removed goes on for as long as it runs.
const maxPause = 30 * time.Second

// pace slows down a connection that is refused, and no other: a manager that is away is tried as often as ever.
type pace struct {
	nc      atomic.Pointer[nats.Conn]
	refused int // in a row
	early   int // failures by the clock, in a row

	log    *zap.Logger
	until  func() time.Time // the end of the certificate in use
	dialed func() error     // why no manager's certificate was seen, nil if one was
}

// sayAfter is how many refusals in a row are no passing thing, and sayEvery how often it is said again.
const (
	sayAfter = 3
	sayEvery = 100
)

// option comes last: it keeps to the waits the options before it set.
func (p *pace) option(o *nats.Options) error {
	o.CustomReconnectDelayCB = func(int) time.Duration {
		var err error
		if err = p.dialed(); err != nil {
			return p.pause(err, o.ReconnectWait, o.ReconnectJitterTLS)
		}
		if nc := p.nc.Load(); nc != nil {
			err = nc.LastError()
		}
		return p.pause(err, o.ReconnectWait, o.ReconnectJitterTLS)
	}
	return nil
}

// say tells what a person can do about a certificate that the managers refuse. Containers go on running meanwhile.
func (p *pace) say(err error) {
	const again = "this node must join again: skep leave --force, then the command that skep join-token worker shows on a manager"
	if end := p.until(); time.Now().After(end) {
		p.log.Error("the certificate of this node has expired; "+again, zap.Time("expired", end), zap.Error(err))
		return
	}
	p.log.Error("the managers refuse the certificate of this node: the root of the cluster was rotated without it, or the clock of one of them is wrong. If the clocks are right, "+again, zap.Error(err))
}

// clock says that a manager's certificate is not valid by this machine's clock. A manager renews its own, so it is hardly ever
// the certificate.
func (p *pace) clock(err error) {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		p.early = 0
		return
	}
	if p.early++; p.early%sayEvery == sayAfter {
		p.log.Error("the certificate of the manager is not valid by this machine's clock: if the clock is wrong, set it (e.g. systemctl restart systemd-timesyncd), and this node connects by itself",
			zap.Time("clock", time.Now()), zap.Error(err))
	}
}

// pause is the wait before the next attempt, after one that failed with err.
func (p *pace) pause(err error, wait, jitter time.Duration) time.Duration {
	alert := err != nil && strings.Contains(err.Error(), "remote error: tls:")
	if p.clock(err); !errors.Is(err, nats.ErrAuthorization) && !alert {
		p.refused = 0
		return wait + rand.N(max(jitter, 1))
	}
	p.refused++
	if alert && p.refused%sayEvery == sayAfter {
		p.say(err)
	}
	wait = min(wait<<min(p.refused-1, 16), maxPause)
	return wait/2 + rand.N(wait)
}

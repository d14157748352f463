package bus

import (
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	joinsPerSecond = 20
	joinBurst      = 100
	sourcesKept    = 10_000
)

// joinLimit holds back connections without a certificate, per source address (IPv6: per /64).
type joinLimit struct {
	perSecond rate.Limit
	mu        sync.Mutex
	sources   map[string]*source
}

type source struct {
	*rate.Limiter
	seen time.Time
}

func newJoinLimit(perSecond float64) *joinLimit {
	if perSecond == 0 {
		perSecond = joinsPerSecond
	}
	return &joinLimit{perSecond: rate.Limit(perSecond), sources: map[string]*source{}}
}

func (l *joinLimit) allow(addr net.Addr) bool {
	key := hostOf(addr)
	if ip := net.ParseIP(key); ip != nil && ip.To4() == nil {
		key = ip.Mask(net.CIDRMask(64, 128)).String()
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sources[key]
	if s == nil {
		if len(l.sources) >= sourcesKept {
			l.forgetLocked(now)
		}
		if len(l.sources) >= sourcesKept {
			return false
		}
		s = &source{Limiter: rate.NewLimiter(l.perSecond, max(1, int(l.perSecond)*joinBurst/joinsPerSecond))}
		l.sources[key] = s
	}
	s.seen = now
	return s.AllowN(now, 1)
}

// forgetLocked drops sources whose allowance has long been full again.
func (l *joinLimit) forgetLocked(now time.Time) {
	for k, s := range l.sources {
		if now.Sub(s.seen) > time.Minute {
			delete(l.sources, k)
		}
	}
}

// Package dial opens connections to managers, of which there are several: the first one that shows the cluster's
// certificate is taken. It owns the order in which they are tried, and what it remembers of those that failed; it refuses
// nothing that the TLS configuration admits.
//
// Failure story: a manager that is dead costs nothing, one that hangs (its kernel accepts connections, nothing answers)
// costs Step, once: the next one is tried beside it, and it goes to the end of the order for a while. When none answers
// within Within, the attempt has failed, and whoever dials tries again.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// DefaultStep is how long one manager is waited for before the next one is tried as well.
	DefaultStep = time.Second
	// DefaultWithin bounds an attempt. A handshake over a line with 200 ms and losses takes up to two seconds, and a
	// broker that 5,000 nodes come back to makes a thousand handshakes a second on one core.
	DefaultWithin = 4 * time.Second
	// remember is how long a manager that failed goes to the end of the order.
	remember = 30 * time.Second
	// silence is how long a connection on which pings are answered never is without a word (libs/daemon pings twice as
	// often): whoever leaves one that was silent for longer leaves a manager that hangs.
	silence = 900 * time.Millisecond
	// most bounds what managers can make us remember.
	most = 32
)

// URL stands in nats.go's list of servers: the dialer knows where the managers are. SkipHostLookup goes with it.
const URL = "tls://managers:2377"

// Told are the addresses that the manager a connection is at told of, itself among them.
func Told(nc *nats.Conn) []string {
	var out []string
	for _, u := range nc.DiscoveredServers() {
		if _, addr, ok := strings.Cut(u, "://"); ok {
			out = append(out, addr)
		}
	}
	return out
}

// Config says where the managers are.
type Config struct {
	TLS *tls.Config
	// Addrs are host:port. Without a Home they are tried in any order.
	Addrs []string
	// Home, one of them or another one, is tried first: the broker of this machine.
	Home string
	// Ordered tries Addrs as they stand: the first one is where it worked last.
	Ordered      bool
	Step, Within time.Duration
}

// Dialer is a nats.CustomDialer that makes the TLS connection too.
type Dialer struct {
	cfg Config

	mu     sync.Mutex
	fixed  []string
	learnt []string
	failed map[string]time.Time // by address, when
	last   *line
	err    error // of the last attempt
}

// New makes a dialer; nothing is contacted.
func New(cfg Config) *Dialer {
	if cfg.Step <= 0 {
		cfg.Step = DefaultStep
	}
	if cfg.Within <= 0 {
		cfg.Within = DefaultWithin
	}
	return &Dialer{cfg: cfg, fixed: slices.Clone(cfg.Addrs), failed: map[string]time.Time{}}
}

// SkipTLSHandshake tells nats.go that what Dial returns is a TLS connection already.
func (d *Dialer) SkipTLSHandshake() bool { return true }

// Learn replaces the addresses that managers told.
func (d *Dialer) Learn(addrs []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.learnt = slices.Clone(addrs[:min(len(addrs), most)])
}

// Addr is the manager that answered last, "" when none did.
func (d *Dialer) Addr() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == nil {
		return ""
	}
	return d.last.addr
}

// Err is why the last attempt failed, nil if it did not.
func (d *Dialer) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Dial implements nats.CustomDialer. The address is ignored: nats.go's list of servers is not in our order.
func (d *Dialer) Dial(string, string) (net.Conn, error) {
	conn, err := d.race(context.Background(), d.order(time.Now()))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	return conn, err
}

// order is how the managers are tried: home, then the others, then those that failed a short while ago, the one that failed
// first before the rest.
func (d *Dialer) order(now time.Time) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last != nil && d.last.lost(now) {
		d.failed[d.last.addr] = now
	}
	var all []string
	if d.cfg.Home != "" {
		all = append(all, d.cfg.Home)
	}
	rest := slices.Concat(d.fixed, d.learnt)
	if !d.cfg.Ordered {
		rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	}
	for _, a := range rest {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	for a, at := range d.failed {
		if now.Sub(at) > remember || !slices.Contains(all, a) {
			delete(d.failed, a)
		}
	}
	slices.SortStableFunc(all, func(a, b string) int { return d.failed[a].Compare(d.failed[b]) })
	return all
}

// opened is how one attempt at one manager ended.
type opened struct {
	addr string
	conn net.Conn
	line *line
	err  error
}

// race returns the first connection that stands.
func (d *Dialer) race(ctx context.Context, addrs []string) (net.Conn, error) {
	if len(addrs) == 0 {
		return nil, errors.New("dial: no manager's address is known")
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Within)
	results := make(chan opened, len(addrs))
	pending := map[string]time.Time{} // since when
	next := 0
	begin := func() {
		if next == len(addrs) {
			return
		}
		addr := addrs[next]
		next++
		pending[addr] = time.Now()
		go func() {
			conn, line, err := d.open(ctx, addr)
			results <- opened{addr, conn, line, err}
		}()
	}
	step := time.NewTicker(d.cfg.Step)
	defer step.Stop()
	var errs []error
	for begin(); len(pending) > 0; {
		select {
		case <-step.C:
			begin()
		case r := <-results:
			delete(pending, r.addr)
			if r.err != nil {
				d.note(r.addr, false)
				errs = append(errs, fmt.Errorf("dial %s: %w", r.addr, r.err))
				step.Reset(d.cfg.Step)
				begin()
				continue
			}
			d.won(r.line, pending)
			cancel()
			go closeRest(results, len(pending))
			return r.conn, nil
		}
	}
	cancel()
	return nil, errors.Join(errs...)
}

// closeRest ends the connections that came too late.
func closeRest(results <-chan opened, n int) {
	for range n {
		if r := <-results; r.conn != nil {
			_ = r.conn.Close() // nobody uses it
		}
	}
}

func (d *Dialer) open(ctx context.Context, addr string) (net.Conn, *line, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	l := &line{Conn: raw, addr: addr}
	l.heard()
	c := tls.Client(l, d.cfg.TLS)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // err says what is wrong
		return nil, nil, err
	}
	return c, l, nil
}

func (d *Dialer) note(addr string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok {
		delete(d.failed, addr)
		return
	}
	d.failed[addr] = time.Now()
}

// won remembers the connection that was made. Whom it overtook hangs, if it had the time to answer.
func (d *Dialer) won(l *line, pending map[string]time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = l
	delete(d.failed, l.addr)
	now := time.Now()
	for addr, since := range pending {
		if now.Sub(since) >= d.cfg.Step {
			d.failed[addr] = now
		}
	}
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/event"
	"skep.dev/libs/ownaddr"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// Two machines may come as one manager: a disk was copied, or an old snapshot of one was started beside it. They have one
// name in the JetStream group, which counts votes and copies by names: both may vote in one term, for different leaders, and
// an entry that one of them has counts as stored on the other. nats-server refuses a route from a server of its own name, but
// takes two others of one name. So two things keep the second one out:
//
//	A route is refused while another server of that name is connected (doubles): without routes it neither votes nor leads,
//	nor is anything stored on it. Servers say their name as the user of the route; which start of it, nats-server says.
//
//	Before its store starts, and while it has no leader, a manager asks who else is there under its node's name (sole), and ends
//	when somebody answers (ErrDuplicate).
//
// A manager that was ended does not answer and has no route, so one that starts again waits for nobody. One whose machine
// lost its power has its route for four seconds more. It is no wall against somebody who stole the certificate.

const (
	// soleFor bounds the question.
	soleFor = time.Second
	// soleEvery is how often a manager without a leader asks, and soleElsewhere one that advertises an address which is not
	// its machine's.
	soleEvery     = 5 * time.Second
	soleElsewhere = 30 * time.Second
	// tellDoubleEvery is how often a second machine is told of: as long as it is there, so that what is told a while ago is over.
	tellDoubleEvery = time.Minute
	// routesCome is how long the routes of a server that was let in may take to be seen.
	routesCome = 2 * time.Second
)

// doubles keeps a second server of a name out.
type doubles struct {
	mu   sync.Mutex
	last map[string]holder // by the server's name: who was let in last
}

type holder struct {
	id   string // of the start of a server
	addr string
	at   time.Time
}

// other is who has the name of a server that asks for a route, nil when nobody else does.
func (d *doubles) other(name, id, addr string, there []holder, now time.Time) *holder {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range there {
		if h.id != id {
			return &h
		}
	}
	if h, ok := d.last[name]; ok && h.id != id && now.Sub(h.at) < routesCome {
		return &h
	}
	if d.last == nil {
		d.last = map[string]holder{}
	}
	for n, h := range d.last {
		if now.Sub(h.at) > time.Minute {
			delete(d.last, n)
		}
	}
	d.last[name] = holder{id, addr, now}
	return nil
}

// isDouble refuses a route of a server while another of its name is there. Servers of older versions do not say their name.
func (b *Bus) isDouble(node string, c server.ClientAuthentication) bool {
	o := c.GetOpts()
	main := b.running()
	if o.Username == "" || o.Name == "" || main == nil {
		return false
	}
	var there []holder
	if o.Username == b.cfg.Name {
		there = append(there, holder{id: main.ID(), addr: b.cfg.RouteAddr()})
	} else if r, err := main.Routez(nil); err == nil {
		for _, x := range r.Routes {
			if x.RemoteName == o.Username {
				there = append(there, holder{id: x.RemoteID, addr: x.IP})
			}
		}
	}
	addr := c.RemoteAddress().String()
	first := b.doubles.other(o.Username, o.Name, addr, there, time.Now())
	if first == nil {
		return false
	}
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	b.refusals.Warn("refused a route: another machine runs as this manager", zap.String("node", node), zap.String("server", printable.Cut(o.Username, 128)),
		zap.String("addr", first.addr), zap.String("second_addr", addr))
	b.double(node, machine{addr: first.addr}, machine{addr: addr})
	return true
}

// machine is one of two.
type machine struct{ hostname, addr string }

func (m machine) String() string {
	if m.hostname == "" {
		return m.addr
	}
	return m.hostname + " at " + m.addr
}

// sole asks who else is there under this node's name: any manager that can be reached, or whoever has the address that this one
// tells others. It is ErrDuplicate, with both addresses, when another machine answers.
func (g *group) sole(ctx context.Context, set *skepv1.ManagerSet) error {
	cfg := &g.b.cfg
	if cfg.Bare {
		return nil // a witness may ask nobody this; its routes are refused
	}
	nc, err := g.dial(append(g.others(set), cfg.Advertise), time.Second)
	if err != nil {
		return nil // nobody is there
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(rpc.Anywhere(ctx), soleFor)
	defer cancel()
	own := machine{cfg.Hostname, seenAs(nc, cfg.Advertise)}
	r, err := api.Call(ctx, nc, api.BusSelf.At(cfg.NodeID), &skepv1.BusSelfRequest{Session: g.session, Hostname: own.hostname, Addr: own.addr})
	if err != nil || r.GetSession() == g.session {
		return nil
	}
	return fmt.Errorf("%w: %s; this one, %s, serves and starts nothing while that one is there. "+
		"Is one a copy of the other's disk? Run `skep leave --force` on the copy, then join it with a token", ErrDuplicate, machine{cut(r.GetHostname()), cut(r.GetAddr())}, own)
}

// cut bounds what another machine says of itself.
func cut(text string) string { return printable.Cut(text, 256) }

// seenAs is the address of a connection as the manager sees it.
func seenAs(nc *nats.Conn, otherwise string) string {
	if ip, err := nc.GetClientIP(); err == nil && ip != nil && !ip.IsUnspecified() {
		return ip.String()
	}
	return otherwise
}

// self answers which start of this manager's broker this is, and tells of the one that asks.
func (g *group) self(_ context.Context, q *skepv1.BusSelfRequest) (*skepv1.SelfReply, error) {
	cfg := &g.b.cfg
	addr := cfg.Advertise
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	if q.GetSession() != g.session {
		g.b.double(cfg.NodeID, machine{cfg.Hostname, addr}, machine{cut(q.GetHostname()), cut(q.GetAddr())})
	}
	return &skepv1.SelfReply{Session: g.session, Hostname: cfg.Hostname, Addr: addr}, nil
}

// watchSole ends this manager when it has no leader and another machine is there under its name, until ctx ends: it was started
// where it reached nobody, and the others refuse its routes. Alone it has a leader; then it looks who has its address.
func (g *group) watchSole(ctx context.Context) {
	t := time.NewTicker(soleEvery)
	defer t.Stop()
	for looked := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if leader, _ := g.b.metaLeader(); leader != "" && (time.Since(looked) < soleElsewhere || ownAddress(g.b.cfg.Advertise)) {
			continue
		}
		looked = time.Now()
		set, _ := g.known()
		if err := g.sole(ctx, set); errors.Is(err, ErrDuplicate) && ctx.Err() == nil {
			g.log.Error("this manager stops", zap.Error(err))
			g.finish(err)
			return
		}
	}
}

// ownAddress reports whether an address is this machine's. A name is taken for one: who answers to it is not looked at.
func ownAddress(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip, perr := netip.ParseAddr(host)
	if err != nil || perr != nil {
		return true
	}
	own, err := ownaddr.Has(ip)
	return own || err != nil
}

// duplicate tells of a second machine with a manager's identity: in the log and as an event, once a minute of each.
func (g *group) duplicate(node string, first, second machine) {
	set, _ := g.known()
	for _, m := range set.GetManagers() {
		if m.GetNodeId() == node && first.hostname == "" {
			first.hostname = m.GetHostname()
		}
	}
	g.mu.Lock()
	key, now := node+" "+second.addr, time.Now()
	quiet := now.Sub(g.doubled[key]) < tellDoubleEvery
	for k, at := range g.doubled {
		if now.Sub(at) > tellDoubleEvery {
			delete(g.doubled, k)
		}
	}
	if !quiet && len(g.doubled) < 64 {
		g.doubled[key] = now
	}
	boss := g.boss
	g.mu.Unlock()
	if quiet || boss == nil {
		return
	}
	g.log.Warn("two machines run as one manager: the second is refused", zap.String("node", node), zap.String("hostname", first.hostname), zap.String("addr", first.addr),
		zap.String("second", second.hostname), zap.String("second_addr", second.addr))
	e := &skepv1.Event{Kind: "node", Id: node, Name: first.hostname, Verb: "duplicate",
		Message:    fmt.Sprintf("two machines run as this manager: %s; the other, %s, is refused. Run `skep leave --force` on the one that is a copy, then join it with a token", first, second),
		Attributes: map[string]string{"hostname": first.hostname, "addr": first.addr, "second.hostname": second.hostname, "second.addr": second.addr}}
	if err := event.PublishOnce(boss, e, fmt.Sprintf("duplicate.%s.%s.%d", node, second.addr, now.Unix()/int64(tellDoubleEvery/time.Second))); err != nil {
		g.log.Warn("event not published", zap.Error(err))
	}
}

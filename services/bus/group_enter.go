package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// confirmFor is how long a manager that starts looks for one that says whether it is still in the group. Restarted all at
	// once nobody answers, and every one starts.
	confirmFor = 3 * time.Second
	// askFor bounds one request to be let in: the others try to reach this node meanwhile.
	askFor = 15 * time.Second
	// askEvery is the pause between two.
	askEvery = 500 * time.Millisecond
	// sayEvery is how often it is said again that nobody lets this node in.
	sayEvery = time.Minute
	// refusedFor is how long managers may refuse the connection of a node that asks: one that has just started knows no new
	// nodes yet.
	refusedFor = 30 * time.Second
)

// place decides which server this start runs, and waits to be let into the group when it is none yet.
func (g *group) place(ctx context.Context, anew *Refounding) (*Place, error) {
	cfg := &g.b.cfg
	p, err := ReadPlace(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if p != nil && p.Gone {
		g.log.Info("removing the rest of the store of a manager that left the group", zap.String("server", p.Server))
		if err := wipe(cfg.DataDir); err != nil {
			return nil, err
		}
		p = nil
	}
	store, err := hasStore(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	switch {
	case anew != nil && cfg.Bare:
		return nil, errors.New("found the cluster anew: this is a witness: it has a copy of the records, and not the key that opens the cluster's CA and secrets")
	case anew != nil && !store:
		return nil, fmt.Errorf("found the cluster anew: %w: there is no store in %s", ErrNoCopy, cfg.DataDir)
	case anew != nil:
		if p == nil { // an older version's directory
			p = &Place{Server: cfg.Name, Witness: cfg.Witness, Epoch: 1}
		}
		p.ClusterID = cfg.TLS.Identity().ClusterID
		p, err = anew.alone(p, cfg)
	case p != nil && store:
		if err := g.sole(ctx, p.set()); err != nil {
			return nil, fmt.Errorf("start the broker %s: %w", p.Server, err)
		}
		if newer, addr := newerEpoch(ctx, cfg.TLS, g.others(p.set()), p.Epoch); newer != nil {
			p, err = g.outlived(ctx, p, newer, addr)
			break
		}
		if err := g.confirm(ctx, p); err != nil {
			return nil, err
		}
		p, err = g.examine(ctx, p)
	case p != nil && len(p.Routes) == 0 && !cfg.Found:
		return nil, fmt.Errorf("start the broker: the store of this manager, which had the only copy, is gone from %s: put it back, or restore a backup", cfg.DataDir)
	case p != nil && len(p.Routes) > 0:
		g.log.Warn("the store of this manager is gone: it asks the others for a new place in the group", zap.String("server", p.Server))
		p, err = g.enlist(ctx, p.set())
	case p != nil: // founding was interrupted
	case store:
		// An older version's directory: its server keeps its name.
		p = &Place{Server: cfg.Name, Witness: cfg.Witness, Routes: cfg.Routes, Epoch: 1}
		err = g.keep(p)
	case cfg.Found:
		p = &Place{Server: serverName(cfg.NodeID, 1), Witness: witnessName(cfg.NodeID, 1), Epoch: 1}
		err = g.keep(p)
	default:
		p, err = g.enlist(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	g.begin(p)
	return p, nil
}

// keep writes group.json.
func (g *group) keep(p *Place) error {
	p.ClusterID = g.b.cfg.TLS.Identity().ClusterID
	return p.Write(g.b.cfg.DataDir)
}

// confirm asks the others, if one answers, whether the server of this directory is still in the group: after SERVER.REMOVE
// it must not come back, and the group might take it in again.
func (g *group) confirm(ctx context.Context, p *Place) error {
	addrs := g.others(p.set())
	if len(addrs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, confirmFor)
	defer cancel()
	nc, err := g.dial(addrs, time.Second)
	if err != nil {
		g.log.Info("no other manager answers; starting as it was", zap.String("server", p.Server), zap.Strings("managers", addrs), zap.Error(err))
		return nil
	}
	defer nc.Close()
	list, err := api.Call(ctx, nc, api.ManagerList, &skepv1.Empty{})
	if err != nil {
		g.log.Info("no other manager tells of the group; starting as it was", zap.String("server", p.Server), zap.Error(err))
		return nil
	}
	switch set := list.GetSet(); {
	case set.GetEpoch() > p.Epoch:
		return fmt.Errorf("start the broker %s: %w; it has epoch %d, the cluster %d (by %s): take this node out with `skep leave --force` and join again",
			p.Server, ErrOver, p.Epoch, set.GetEpoch(), nc.ConnectedAddr())
	case set.GetEpoch() == p.Epoch && gone(set, g.b.cfg.NodeID, p.Server):
		g.log.Warn("this manager was taken out of the group while it was away; its store is removed", zap.String("server", p.Server), zap.String("by", nc.ConnectedAddr()))
		if err := wipe(g.b.cfg.DataDir); err != nil {
			return err
		}
		return ErrRetired
	case set.GetEpoch() == p.Epoch && p.follow(set, p.Revision):
		// The others may have moved, or taken the witness out, while this one was away.
		if err := g.keep(p); err != nil {
			return err
		}
	}
	return nil
}

// gone reports whether a set is of a time after the server left. One that does not name it may be of a time before it came:
// then its number was not given yet.
func gone(set *skepv1.ManagerSet, node, server string) bool {
	return len(set.GetManagers()) > 0 && memberOf(set, server) == nil && uint32(numberOf(server, node)) <= set.GetUsed()[node]
}

// others are the client addresses of managers to turn to, the configured ones first.
func (g *group) others(set *skepv1.ManagerSet) []string {
	addrs := slices.Clone(g.b.cfg.Managers)
	for _, m := range set.GetManagers() {
		if !m.GetBare() { // a witness answers nobody
			addrs = append(addrs, m.GetAddr())
		}
	}
	var out []string
	for _, a := range addrs {
		if a != "" && a != g.b.cfg.Advertise && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// dial connects to any of the managers' brokers with this node's certificate.
func (g *group) dial(addrs []string, each time.Duration) (*nats.Conn, error) {
	cfg := &g.b.cfg
	nc, err := nats.Connect("tls://"+strings.Join(addrs, ",tls://"), nats.Secure(pki.ClientTLS(cfg.TLS)), nats.TLSHandshakeFirst(),
		nats.Name("skep-bus "+cfg.NodeID), nats.CustomInboxPrefix(subject.Inbox("bus-"+cfg.NodeID)), nats.NoReconnect(), nats.Timeout(each))
	if err != nil {
		return nil, fmt.Errorf("connect to the managers %s: %w", strings.Join(addrs, ", "), err)
	}
	return nc, nil
}

// enlist asks for a place in the group until there is one. Meanwhile this node holds its ports, so that the others can see
// whether they reach it. known is the group as this node knew it.
func (g *group) enlist(ctx context.Context, known *skepv1.ManagerSet) (*Place, error) {
	cfg := &g.b.cfg
	release, err := hold(cfg)
	if err != nil {
		return nil, err
	}
	defer release()
	var said time.Time
	var last string
	refused := time.Time{}
	for {
		addrs := g.others(known)
		reply, err := g.ask(ctx, addrs)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			g.log.Info("this node was let into the group of managers", zap.String("server", reply.GetServer()), zap.Strings("routes", reply.GetRoutes()))
			p := &Place{Server: reply.GetServer()}
			p.follow(reply.GetSet(), 0)
			p.Routes, p.Epoch = reply.GetRoutes(), reply.GetEpoch()
			if err := wipe(cfg.DataDir); err != nil { // of an earlier place
				return nil, err
			}
			return p, g.keep(p)
		case final(err):
			return nil, fmt.Errorf("enlist as a manager: %w: %w", ErrRefused, err)
		case !errors.Is(err, nats.ErrAuthorization):
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case time.Since(refused) > refusedFor:
			return nil, fmt.Errorf("enlist as a manager: %w: they refuse this node's certificate: it was removed from the cluster, or its certificate is not a manager's", ErrRefused)
		}
		if text := err.Error(); text != last || time.Since(said) > sayEvery {
			last, said = text, time.Now()
			g.log.Warn("waiting to be let into the group of managers", zap.Strings("managers", addrs), zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(askEvery):
		}
	}
}

// ask asks once.
func (g *group) ask(ctx context.Context, addrs []string) (*skepv1.EnlistReply, error) {
	cfg := &g.b.cfg
	if len(addrs) == 0 {
		return nil, errors.New("enlist as a manager: no manager's address is known")
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	nc, err := g.dial(addrs, 2*time.Second)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	return api.Call(ctx, nc, api.BusEnlist.At(cfg.NodeID), &skepv1.EnlistRequest{
		Addr: cfg.Advertise, Route: cfg.RouteAddr(), Hostname: cfg.Hostname, Version: cfg.Version, Bare: cfg.Bare,
	})
}

// final reports whether no waiting mends what the managers answered.
func final(err error) bool {
	switch fault.Of(err) {
	case fault.CodeDenied, fault.CodeInvalid, fault.CodeExhausted:
		return true
	}
	return false
}

// hold listens on both ports as the broker will: whoever dials them sees this node's certificate, and nothing more.
func hold(cfg *Config) (release func(), err error) {
	host, port, err := splitAddr(cfg.Listen)
	if err != nil {
		return nil, err
	}
	var open []net.Listener
	release = func() {
		for _, l := range open {
			_ = l.Close()
		}
	}
	for p, tc := range map[int]func(pki.Source) *tlsConfig{port: pki.ServerTLS, cfg.RoutePort: pki.RouteTLS} {
		if err = portFree(host, p); err != nil {
			break
		}
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(p))); err != nil {
			break
		}
		open = append(open, l)
		go show(l, tc(cfg.TLS))
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// show makes the handshake of each connection and ends it.
func show(l net.Listener, tc *tlsConfig) {
	turns := make(chan struct{}, 64)
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(50 * time.Millisecond) // out of files
			continue
		}
		select {
		case turns <- struct{}{}:
			go func() {
				defer func() { <-turns }()
				defer c.Close()
				handshake(c, tc)
			}()
		default:
			c.Close()
		}
	}
}

package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	"skep.dev/libs/ownaddr"
)

// renumber puts new addresses of this machine into its record, "" leaves one as it is; the services that start next go
// by them, and the other nodes follow. Certificates name nodes, not addresses. A new address is one that was given: it stays.
func renumber(p Paths, rec *Record, advertise, dataPath string, log *zap.Logger) (*Record, error) {
	if advertise == "" && dataPath == "" {
		return rec, nil
	}
	listen := rec.Listen
	if advertise != "" {
		a, err := resolveAdvertise(advertise, portOf(rec))
		if err != nil {
			return nil, fault.Usage("%v", err)
		}
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return nil, fault.Usage("advertise address %q: %v", advertise, err)
		}
		switch {
		case rec.Votes():
			advertise, listen = a, listenOn(rec, host)
		case port != strconv.Itoa(DefaultPort):
			return nil, fault.Usage("advertise address %q: a worker listens on no port, give the address alone", advertise)
		default:
			advertise = host
		}
	}
	dataPath, err := resolveDataPath(dataPath)
	if err != nil {
		return nil, fault.Usage("%v", err)
	}
	if (advertise == "" || advertise == rec.Advertise && !rec.AdvertiseFound) && (dataPath == "" || dataPath == rec.DataPath) {
		return rec, nil
	}
	was := *rec
	rec, err = member.Update(p, func(r *Record) {
		if advertise != "" {
			r.Advertise, r.AdvertiseFound, r.Listen = advertise, false, listen
		}
		if dataPath != "" {
			r.DataPath = dataPath
		}
	})
	if err != nil {
		return nil, fmt.Errorf("change the node's address: %w", err)
	}
	log.Info("this node has another address", zap.String("advertise", rec.Advertise), zap.String("data_path", rec.Underlay()),
		zap.String("advertise_before", was.Advertise), zap.String("data_path_before", was.Underlay()))
	return rec, nil
}

// portOf is the port of the address that a manager advertises, the default one for a worker.
func portOf(rec *Record) int {
	if _, port, err := net.SplitHostPort(rec.Advertise); err == nil {
		if n, err := strconv.Atoi(port); err == nil {
			return n
		}
	}
	return DefaultPort
}

// listenOn is where a manager listens once others reach it at host: one that listened on its old address alone follows.
func listenOn(rec *Record, host string) string {
	if h, port, err := net.SplitHostPort(rec.Listen); err == nil && h == rec.Host() {
		return net.JoinHostPort(host, port)
	}
	return rec.Listen
}

const (
	// keepAddress is how long a machine that has just started may take to get the address back that its node had.
	keepAddress = 10 * time.Second
	lookAddress = 250 * time.Millisecond
	sayAddress  = 30 * time.Second
)

// findAddress gives a node whose address was found, not given, the one its machine has now, once it is clear that the old one
// does not come back. An address that was given stays: it may be another machine's that forwards to this one.
func findAddress(ctx context.Context, p Paths, rec *Record, keep time.Duration, log *zap.Logger) (*Record, error) {
	own, err := netip.ParseAddr(rec.Host())
	if !rec.AdvertiseFound || err != nil { // of a name nobody here can tell
		return rec, nil
	}
	began, said := time.Now(), time.Time{}
	tick := time.NewTicker(min(lookAddress, max(keep, time.Millisecond)))
	defer tick.Stop()
	for {
		if isHere(own) {
			return rec, nil
		}
		host := ""
		var err error
		if time.Since(began) >= keep {
			if host, err = addressNow(rec.Managers); err == nil {
				return readdressed(p, rec, host, log)
			}
		}
		if said.IsZero() || time.Since(said) > sayAddress {
			said = time.Now()
			log.Warn("this machine does not have the node's address: waiting for it, or for another", zap.String("advertise", rec.Host()), zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func readdressed(p Paths, rec *Record, host string, log *zap.Logger) (*Record, error) {
	was := rec.Advertise
	rec, err := member.Update(p, func(r *Record) {
		if r.Advertise = host; r.Votes() {
			r.Advertise = net.JoinHostPort(host, strconv.Itoa(portOf(rec)))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("change the node's address: %w", err)
	}
	log.Warn("this machine has another address, and the node goes by it from now on: the others follow", zap.String("advertise", rec.Advertise), zap.String("advertise_before", was))
	return rec, nil
}

// isHere reports whether this machine has an address, as far as that is known.
func isHere(a netip.Addr) bool {
	own, err := ownaddr.Has(a)
	return own || err != nil
}

// addressNow is the address by which this machine would reach the managers, else the only one it has.
func addressNow(managers []string) (string, error) {
	for _, m := range managers {
		c, err := net.Dial("udp", m) // nothing is sent
		if err != nil {
			continue
		}
		local, _, err := net.SplitHostPort(c.LocalAddr().String())
		_ = c.Close()
		if ip, perr := netip.ParseAddr(local); err == nil && perr == nil && !ip.IsLoopback() && !ip.IsUnspecified() {
			return ip.Unmap().String(), nil
		}
	}
	ip, err := systemAddr()
	if err != nil {
		return "", err
	}
	return ip.String(), nil
}

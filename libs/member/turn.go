package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/pki"
)

// DefaultListen is where a manager takes connections unless told otherwise; other managers connect to the next port.
const DefaultListen = "0.0.0.0:2377"

// Turn makes of the record that of a node of the other role. What a manager needs and a worker has not, it takes from what
// join was told.
func (r *Record) Turn(role string) error {
	switch {
	case r.Role == role:
		return nil
	case r.Role == RoleWitness:
		return fmt.Errorf("turn a witness into a %s: it has nothing to be one with; leave and join again", role)
	case role == RoleWorker:
		if own := r.Advertise; own != "" {
			r.Managers = slices.DeleteFunc(slices.Clone(r.Managers), func(a string) bool { return a == own })
		}
		r.Advertise, r.RoutePort, r.Witness = r.Host(), 0, ""
		r.Role = role
		return nil
	case role != RoleManager:
		return fmt.Errorf("turn the node into a %q: there are managers and workers", role)
	}
	if r.Advertise == "" {
		return errors.New("turn the node into a manager: it has no address that others could reach it at; leave and join again with --advertise-addr")
	}
	listen := r.Listen
	if listen == "" {
		listen = DefaultListen
	}
	_, p, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("turn the node into a manager: listen address %q: %w", listen, err)
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		return fmt.Errorf("turn the node into a manager: listen address %q: %w", listen, err)
	}
	r.Role, r.Listen, r.RoutePort = role, listen, port+1
	r.Advertise = net.JoinHostPort(r.Host(), p)
	return nil
}

// Ports are what a manager listens on, host:port: for nodes, and for other managers.
func (r *Record) Ports() []string {
	host, _, err := net.SplitHostPort(r.Listen)
	if err != nil {
		return nil
	}
	return []string{r.Listen, net.JoinHostPort(host, strconv.Itoa(r.RoutePort))}
}

// Certified is the role of a record that belongs to a certificate's.
func Certified(role pki.Role) string {
	switch role {
	case pki.Manager:
		return RoleManager
	case pki.Witness:
		return RoleWitness
	}
	return RoleWorker
}

// Certificate is the certificate's role that belongs to a record's.
func Certificate(role string) pki.Role {
	switch role {
	case RoleManager:
		return pki.Manager
	case RoleWitness:
		return pki.Witness
	}
	return pki.Worker
}

// Settle has the record's role follow the certificate's: a crash may have come between the two, and what the cluster
// certified is what counts.
func Settle(p Paths, certified pki.Role) (*Record, error) {
	sweep(p)
	r, err := Load(p)
	if err != nil || r.Role == Certified(certified) || r.NodeID == "" {
		return r, err
	}
	return turn(p, Certified(certified))
}

func turn(p Paths, role string) (*Record, error) {
	var bad error
	r, err := Update(p, func(r *Record) { bad = r.Turn(role) })
	if bad != nil {
		return nil, bad
	}
	return r, err
}

// TurnNode gives the node another role: it looks whether there is room for a manager, has renew get the certificate, and
// writes the record. What runs is the caller's business.
func TurnNode(ctx context.Context, p Paths, role string, renew func(context.Context, pki.Role) error) (*Record, error) {
	rec, err := Load(p)
	if err != nil {
		return nil, err
	}
	if role == RoleManager {
		then := *rec
		if err := then.Turn(role); err != nil {
			return nil, err
		}
		for _, addr := range then.Ports() {
			if err := Free(addr); err != nil {
				return nil, fmt.Errorf("%w; it is a worker until the port is free, or demoted again", err)
			}
		}
	}
	if err := renew(ctx, Certificate(role)); err != nil {
		return nil, err
	}
	return turn(p, role)
}

// Free refuses an address at which nothing could listen now.
func Free(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return l.Close()
}

// sweep removes what writers that a crash ended left half-written in the folders whose files are skep's own. A volume's content lies in a
// folder below that of its record, and is not looked at.
func sweep(p Paths) {
	for dir, deep := range map[string]int{p.Data: 0, p.Certs(): 0, p.Vault(): 0, p.Bus(): 0} {
		atomicfile.Sweep(dir, deep)
	}
	for dir, deep := range map[string]int{"mesh": 1, "agent": 0, "agent/tasks": 1, "agent/volumes": 1, "agent/volumes/.labels": 1, "agent/mounts": 2} {
		atomicfile.Sweep(filepath.Join(p.Data, dir), deep)
	}
}

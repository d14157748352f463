package rpc

import (
	"context"
	"net/netip"
	"strings"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/subject"
)

// Names of askers that are no identities.
const (
	Root      = "root"      // root on a manager, through the socket
	Scheduler = "scheduler" // whichever manager's it is
	// Unknown is a person who asked on the bare subject of a verb, which people may do for what only reads (so that `nats req`
	// works by hand). What is recorded must not be answered to one.
	Unknown = "unknown"
)

// Actor is who asked, and from where: an address, "local", or "" for services and nodes.
type Actor struct{ Name, Address string }

// Person reports whether it is somebody: a user, or root.
func (a Actor) Person() bool { return a.Name == Root || subject.IsPerson(a.Name) }

type actorKey struct{}

// WithActor is ctx with who asked for what is done under it.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf is who asked for the change in work, as far as it is proven; zero when nobody did.
func ActorOf(ctx context.Context) Actor {
	a, _ := ctx.Value(actorKey{}).(Actor)
	return a
}

// Asker names who asked for the change in work: a user's certificate, root on a manager, a service, or a node.
func Asker(ctx context.Context) string { return ActorOf(ctx).Name }

// AskerAddress is where that came from.
func AskerAddress(ctx context.Context) string { return ActorOf(ctx).Address }

// ActorFrom reads who asks off a request's subject and inbox. The subject of a person's request is proof (subject.By). On the
// bare subject ask services and local root, who are believed: they could do all of it in any name.
func ActorFrom(asked, reply string) Actor {
	if _, identity, from, named := subject.AskedBy(asked); named {
		return Actor{identity, subject.Address(from)}
	}
	name := subject.InboxOwner(reply)
	switch {
	case name == "" || strings.HasPrefix(name, "local-"):
		return Actor{Root, subject.Local}
	case strings.HasPrefix(name, "scheduler-"):
		return Actor{Name: Scheduler}
	case subject.IsPerson(name):
		return Actor{Name: Unknown}
	}
	return Actor{Name: name}
}

// AskOn is the subject on which a connection asks a verb: the bare one, or with a person's certificate that person's. Whose
// connection it is says the prefix of its inboxes. The answer changes when the connection moves to another address.
func AskOn(nc *nats.Conn, asked string) string {
	identity := subject.InboxIdentity(nc.Opts.InboxPrefix)
	if !subject.IsPerson(identity) || subject.ByAnybody(asked) == "" {
		return asked
	}
	return subject.By(asked, identity, subject.From(seenAddress(nc)))
}

// seenAddress is the address of the connection as the broker sees it.
func seenAddress(nc *nats.Conn) netip.Addr {
	if ip, err := nc.GetClientIP(); err == nil {
		if a, ok := netip.AddrFromSlice(ip); ok {
			return a
		}
	}
	// A link-local address has a zone, which nats.go does not read. Nothing translates such an address on the way.
	if at, err := netip.ParseAddrPort(nc.LocalAddr()); err == nil {
		return at.Addr()
	}
	return netip.Addr{}
}

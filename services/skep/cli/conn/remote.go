package conn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/dial"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// userPrefix begins the identity of a person's certificate.
const userPrefix = "user-"

// User is who a context's certificate names, what that user may do (admin, viewer) and until when.
func (c Context) User() (name, role string, end time.Time, err error) {
	id, err := c.identity()
	if err != nil {
		return "", "", end, err
	}
	return strings.TrimPrefix(id.Identity().NodeID, userPrefix), id.Identity().UserRole, id.Leaf().NotAfter, nil
}

// userName is the user's, or a word for it when the certificate cannot be read.
func (c Context) userName() string {
	name, _, _, err := c.User()
	if err != nil {
		return "NAME"
	}
	return name
}

// Inbox is the prefix of the only inboxes the broker lets the user have.
func (c Context) Inbox() (string, error) {
	id, err := c.identity()
	if err != nil {
		return "", err
	}
	return inbox(id), nil
}

func inbox(id *pki.Store) string {
	if id.Identity().UserRole == pki.Viewer {
		return subject.ViewerInbox(id.Identity().NodeID)
	}
	return subject.Inbox(id.Identity().NodeID)
}

// identity checks that certificate, key and CA fit together.
func (c Context) identity() (*pki.Store, error) {
	id, err := pki.Memory([]byte(c.Cert), []byte(c.Key), []byte(c.CA))
	if err != nil {
		return nil, fault.Invalid("context %s: its certificate, key and CA do not fit together: %v", c.Name, err)
	}
	return id, nil
}

// Servers are the managers' addresses, the first one first.
func (c Context) Servers() []string {
	out := []string{c.Addr}
	for _, a := range c.Others {
		if a != c.Addr {
			out = append(out, a)
		}
	}
	return out
}

func dialRemote(ctx context.Context, o Options, opts []nats.Option) (*nats.Conn, error) {
	c, err := o.Store.Load(o.Context)
	if err != nil {
		return nil, err
	}
	id, err := c.identity()
	if err != nil {
		return nil, err
	}
	// A refused certificate ends the connection in ways that are hard to tell apart; dates can be checked here.
	if end := id.Leaf().NotAfter; time.Now().After(end) {
		return nil, fault.Denied("context %s: its certificate expired on %s; on a manager, `skep context issue %s` makes a new one",
			c.Name, end.Local().Format("2006-01-02 15:04:05 MST"), strings.TrimPrefix(id.Identity().NodeID, userPrefix))
	}
	d := dial.New(dial.Config{TLS: pki.ClientTLS(id), Addrs: c.Servers(), Ordered: true, Step: sideBySide, Within: o.Timeout})
	opts = append(opts,
		nats.Secure(pki.ClientTLS(id)), nats.TLSHandshakeFirst(), nats.SetCustomDialer(d), nats.SkipHostLookup(),
		nats.DiscoveredServersHandler(func(nc *nats.Conn) { d.Learn(dial.Told(nc)) }),
		nats.CustomInboxPrefix(inbox(id)),
	)
	nc, err := nats.Connect(dial.URL, opts...)
	if err != nil {
		if derr := d.Err(); derr != nil {
			err = derr
		}
		return nil, remoteError(c, err)
	}
	if err := o.Store.exchange(ctx, nc, c, id); err != nil && o.Kept != nil {
		o.Kept(err)
	}
	told := dial.Told(nc)
	d.Learn(told)
	// A context that cannot be written works as it is.
	_ = o.Store.learn(c.Name, d.Addr(), told)
	return nc, nil
}

// remoteError says what a person can do about a connection that failed.
func remoteError(c Context, err error) error {
	at := fmt.Sprintf("connect to %s (context %s)", strings.Join(c.Servers(), ", "), c.Name)
	var (
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &unknown):
		return fault.Denied("%s: the manager there belongs to another cluster: its certificate is not signed by this context's CA", at)
	case errors.As(err, &host):
		return fault.Denied("%s: what answers there is not a manager: %v", at, err)
	case errors.As(err, &record):
		return fault.Denied("%s: what answers there does not speak TLS: is it the address of a manager?", at)
	case errors.Is(err, nats.ErrAuthorization), strings.Contains(err.Error(), "remote error: tls:"):
		return fault.Denied("%s: the manager refuses this context's certificate (%v): it was revoked, or the cluster's root was rotated meanwhile; on a manager, `skep context issue %s` makes another", at, err, c.userName())
	}
	var net net.Error
	if errors.Is(err, nats.ErrNoServers) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &net) {
		return fault.Unavailable("%s: nothing answers there: is the manager running, and is the address right from here?", at)
	}
	return fault.Unavailable("%s: %v", at, err)
}

package bus

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// peer is a client connection that remembers what the broker forbade.
type peer struct {
	*nats.Conn
	t      testing.TB
	denied chan error
	closed chan struct{}
}

func dial(t testing.TB, b *Bus, creds *pki.Store, opts ...nats.Option) *peer {
	t.Helper()
	p, err := tryDial(t, b, creds, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryDial(t testing.TB, b *Bus, creds *pki.Store, opts ...nats.Option) (*peer, error) {
	t.Helper()
	p := &peer{t: t, denied: make(chan error, 256), closed: make(chan struct{})}
	ident := creds.Identity()
	opts = append([]nats.Option{
		nats.Secure(pki.ClientTLS(creds)), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.CustomInboxPrefix(inboxOf(ident)),
		nats.Timeout(10 * time.Second),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { p.denied <- err }),
		nats.ClosedHandler(func(*nats.Conn) { close(p.closed) }),
	}, opts...)
	nc, err := nats.Connect("tls://"+b.ClientAddr().String(), opts...)
	if err != nil {
		return nil, err
	}
	p.Conn = nc
	t.Cleanup(nc.Close)
	return p, nil
}

// refused reports whether what was just done was forbidden.
func (p *peer) refused() bool {
	p.t.Helper()
	// The broker's error arrives before the pong, its handler may still be on the way; a joiner is cut off instead.
	if err := p.FlushTimeout(10 * time.Second); err != nil && !(strings.HasPrefix(p.Opts.User, "join-") && p.IsClosed()) {
		p.t.Fatal(err)
	} else if err == nil && p.LastError() == nil {
		return false
	}
	select {
	case err := <-p.denied:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			p.t.Fatalf("not a permission violation: %v", err)
		}
		return true
	case <-time.After(10 * time.Second):
		return false
	}
}

func (p *peer) mustNotPublish(subj string, m *nats.Msg) {
	p.t.Helper()
	if m == nil {
		m = &nats.Msg{}
	}
	m.Subject = subj
	q := p.fresh()
	defer q.Close()
	if err := q.PublishMsg(m); err != nil {
		p.t.Fatal(err)
	}
	if !q.refused() {
		p.t.Errorf("%s: may publish to %s", p.Opts.Name, subj)
	}
}

func (p *peer) mustPublish(subj string) {
	p.t.Helper()
	q := p.fresh()
	defer q.Close()
	if err := q.Publish(subj, []byte("x")); err != nil {
		p.t.Fatal(err)
	}
	if q.refused() {
		p.t.Errorf("%s: may not publish to %s", p.Opts.Name, subj)
	}
}

func (p *peer) subscribe(subj string, want bool) {
	p.t.Helper()
	q := p.fresh()
	defer q.Close()
	if _, err := q.SubscribeSync(subj); err != nil {
		p.t.Fatal(err)
	}
	if got := !q.refused(); got != want {
		p.t.Errorf("%s: subscribe to %s: allowed is %v, want %v", p.Opts.Name, subj, got, want)
	}
}

// fresh is the same connection again, without earlier errors; a joiner's has another name.
func (p *peer) fresh() *peer {
	p.t.Helper()
	q := &peer{t: p.t, denied: make(chan error, 256)}
	o := p.Opts
	o.AsyncErrorCB = func(_ *nats.Conn, _ *nats.Subscription, err error) { q.denied <- err }
	o.ClosedCB = nil
	if strings.HasPrefix(o.User, "join-") {
		o.User = "join-" + id.New()
		o.InboxPrefix = "_INBOX_" + o.User
	}
	nc, err := o.Connect()
	if err != nil {
		p.t.Fatal(err)
	}
	q.Conn = nc
	p.t.Cleanup(nc.Close)
	return q
}

// inboxOf is the prefix of the inboxes the broker lets an identity hear.
func inboxOf(ident pki.Identity) string {
	if ident.UserRole == pki.Viewer {
		return subject.ViewerInbox(ident.NodeID)
	}
	return subject.Inbox(ident.NodeID)
}

package join

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
)

// DefaultPort is where managers listen.
const DefaultPort = "2377"

const (
	dialWithin = 5 * time.Second
	// joinWithin bounds all attempts: a manager that was just started takes a moment until its vault answers.
	joinWithin    = 20 * time.Second
	attemptWithin = 5 * time.Second
)

// Params is what a joiner says of itself.
type Params struct {
	Hostname     string
	Addr         string // advertise address
	Availability skepv1.Availability
	Version      string
	Witness      bool             // it is to vote, and nothing else; with the managers' token
	Now          func() time.Time // this machine's clock; nil = time.Now
}

// Result is a node's new identity.
type Result struct {
	Reply *skepv1.JoinReply
	Cert  []byte // PEM
	Key   []byte // PEM, made here, never sent
	CA    []byte // PEM
}

// Join makes this machine a node of the cluster of the manager at addr (host, or host:port). Its errors are for people:
// each says what was wrong and what to do.
func Join(ctx context.Context, addr, token string, p Params) (*Result, error) {
	tok, err := pki.ParseToken(token)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	if addr, err = complete(addr); err != nil {
		return nil, err
	}
	if err := probe(ctx, addr, tok.Digest); err != nil {
		return nil, err
	}
	key, csr, err := pki.NewKeyAndCSR()
	if err != nil {
		return nil, err
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	req := &skepv1.JoinRequest{
		Token: tok.String(), CsrDer: csr, Hostname: p.Hostname, Addr: p.Addr, Availability: p.Availability, Version: p.Version, Witness: p.Witness,
	}
	reply, err := ask(ctx, addr, tok.Digest, req, p.Now)
	if err != nil {
		return nil, err
	}
	r := &Result{Reply: reply, Cert: reply.CertPem, Key: key, CA: reply.CaPem}
	// The CA of the answer must be the token's too, or a successor of it, and the key ours.
	if err = pki.Certifies(tok.Digest, r.Cert, r.CA); err == nil {
		_, err = pki.Memory(r.Cert, r.Key, r.CA)
	}
	if err != nil {
		return nil, fmt.Errorf("join %s: check the certificate it issued: %w", addr, err)
	}
	return r, nil
}

func complete(addr string) (string, error) {
	if addr == "" {
		return "", fault.Invalid("join: the address of a manager is missing: skep join --token TOKEN HOST[:%s]", DefaultPort)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		host, port = addr, DefaultPort
		if strings.HasPrefix(addr, "[") && strings.HasSuffix(addr, "]") { // an IPv6 address without a port
			host = addr[1 : len(addr)-1]
		}
		if ip := net.ParseIP(host); ip == nil {
			// Not an address and not host:port: a bare host name is fine, anything with a colon left is not.
			if h, _, err2 := net.SplitHostPort(addr + ":" + DefaultPort); err2 != nil || h != addr {
				return "", fault.Invalid("join %q: that is not HOST or HOST:PORT", addr)
			}
		}
	}
	if host == "" || port == "" {
		return "", fault.Invalid("join %q: that is not HOST or HOST:PORT", addr)
	}
	return net.JoinHostPort(host, port), nil
}

// ask repeats the request until somebody answers it.
func ask(ctx context.Context, addr, digest string, req *skepv1.JoinRequest, now func() time.Time) (*skepv1.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	var last error
	for {
		reply, err := attempt(ctx, addr, digest, req, now)
		if err == nil {
			return reply, nil
		}
		if !fault.Is(err, fault.CodeUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, fault.Unavailable("join %s: the manager is there but cannot admit nodes now: it may be starting, or the managers have lost their majority; try again in a while (last: %v)", addr, last)
		}
	}
}

func attempt(ctx context.Context, addr, digest string, req *skepv1.JoinRequest, now func() time.Time) (*skepv1.JoinReply, error) {
	name := "join-" + id.New()
	nc, err := nats.Connect("tls://"+addr, nats.Name("skep join "+req.Hostname), nats.NoReconnect(), nats.Timeout(dialWithin),
		nats.Secure(pki.JoinTLS(digest)), nats.TLSHandshakeFirst(), nats.UserInfo(name, ""), nats.CustomInboxPrefix(subject.Inbox(name)))
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fault.Exhausted("join %s: the manager refuses more attempts from this address; wait a minute and join again", addr)
	case err != nil:
		return nil, fault.Unavailable("join %s: %v", addr, err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, attemptWithin)
	defer cancel()
	req.Now = timestamppb.New(now())
	return api.Call(ctx, nc, api.Join.At(name), req)
}

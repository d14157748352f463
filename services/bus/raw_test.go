package bus

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
)

// raw is a client that keeps to no library's manners.
type raw struct {
	net.Conn
	t  testing.TB
	in *bufio.Reader
}

// rawDial connects with the TLS configuration and says CONNECT with these options.
func rawDial(t testing.TB, b *Bus, cfg *tls.Config, options map[string]any) *raw {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", b.ClientAddr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	r := &raw{Conn: c, t: t, in: bufio.NewReader(c)}
	if line, err := r.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "INFO ") {
		t.Fatalf("%q, %v", line, err)
	}
	if options != nil {
		text, err := json.Marshal(options)
		if err != nil {
			t.Fatal(err)
		}
		r.say("CONNECT %s\r\n", text)
	}
	return r
}

func rawJoiner(t testing.TB, b *Bus, ca *pki.CA) (r *raw, name string) {
	t.Helper()
	name = "join-" + id.New()
	r = rawDial(t, b, pki.JoinTLS(pki.Digest(ca.Cert)), map[string]any{"user": name, "verbose": false, "headers": true, "protocol": 1, "lang": "go"})
	r.pong()
	return r, name
}

// say writes; an error is the broker's right.
func (r *raw) say(format string, a ...any) bool {
	_, err := fmt.Fprintf(r, format, a...)
	return err == nil
}

// pong waits until all that was said is done.
func (r *raw) pong() {
	r.t.Helper()
	r.say("PING\r\n")
	for {
		line, err := r.in.ReadString('\n')
		if err != nil {
			r.t.Fatal(err)
		}
		if strings.HasPrefix(line, "PONG") {
			return
		}
	}
}

// ended reads until the broker closes the connection, and returns what it said.
func (r *raw) ended() string {
	r.t.Helper()
	text, err := io.ReadAll(r.in)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		r.t.Errorf("the connection is still open after %s", patience)
	}
	return string(text)
}

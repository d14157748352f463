package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"skep.dev/libs/printable"
)

const (
	accept      = "application/vnd.docker.plugins.v1.2+json"
	maxAnswer   = 1 << 20 // bytes
	maxListing  = 8 << 20 // bytes of the answer to List
	maxErrText  = 1 << 10 // bytes of a plug-in's words that are shown
	dialTimeout = 5 * time.Second
)

// limits are how long a plug-in may take.
type limits struct {
	slow  time.Duration // Create, Mount: storage is made or attached
	quick time.Duration // the others
	look  time.Duration // what is asked to know the plug-in, and for lists that people wait for
}

// Docker's, except for the last: a plug-in that does not even say its name in that time is as good as none.
var dockers = limits{slow: 2 * time.Minute, quick: time.Minute, look: 10 * time.Second}

// refused is the plug-in's own word that it did not do what it was asked.
type refused struct{ text string }

func (r refused) Error() string { return r.text }

// missing is the answer of a plug-in that does not know the call.
var errNoCall = errors.New("it does not know this call")

// client speaks to one plug-in.
type client struct {
	ep     endpoint
	http   *http.Client
	scheme string
	limits limits
	done   func(call string, took time.Duration, err error)
}

func newClient(ep endpoint, l limits, done func(call string, took time.Duration, err error)) (*client, error) {
	tr := &http.Transport{
		// One connection a call: it cannot go wrong because the plug-in was restarted since the last one, so a call that could
		// not connect was never heard.
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, ep.network, ep.address)
		},
	}
	scheme := "http"
	if ep.tls.on {
		conf, err := ep.tls.config(ep.address)
		if err != nil {
			return nil, err
		}
		tr.TLSClientConfig, scheme = conf, "https"
	}
	return &client{ep: ep, scheme: scheme, limits: l, done: done, http: &http.Client{
		Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (t tlsFiles) config(address string) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	c := &tls.Config{ServerName: host, InsecureSkipVerify: t.InsecureSkipVerify, MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the plug-in's CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the plug-in's CA file %s has no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for the plug-in: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// answer is what every reply may carry.
type answer interface{ failure() string }

type errText struct{ Err string }

func (e errText) failure() string { return e.Err }

// call asks once. The error is refused when the plug-in said so itself, and unsent when it cannot have heard.
func (c *client) call(ctx context.Context, method string, limit time.Duration, in any, out answer) (err error) {
	began := time.Now()
	defer func() {
		if c.done != nil {
			c.done(method, time.Since(began), err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body := []byte{}
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode %s: %w", method, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.scheme+"://plugin/"+method, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask %s: %w", method, err)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("%s was not answered within %s", method, limit)
		}
		return fmt.Errorf("%s: %w", method, innermost(err))
	}
	defer resp.Body.Close()
	most := int64(maxAnswer)
	if method == "VolumeDriver.List" {
		most = maxListing
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s was not answered within %s", method, limit)
	case err != nil:
		return fmt.Errorf("%s: the answer broke off: %w", method, err)
	case int64(len(b)) > most:
		return fmt.Errorf("%s: the answer is longer than %d bytes", method, most)
	case resp.StatusCode == http.StatusNotFound && !json.Valid(b):
		return fmt.Errorf("%s: %w", method, errNoCall)
	}
	return decode(method, resp.StatusCode, b, out)
}

// decode reads an answer. Names of fields are taken in any case, as Docker takes them: plug-ins write Mountpoint and MountPoint.
func decode(method string, status int, b []byte, out answer) error {
	if status != http.StatusOK {
		var e errText
		text := string(b)
		if json.Unmarshal(b, &e) == nil && e.Err != "" {
			text = e.Err
		}
		if text = cut(text); text == "" {
			text = fmt.Sprintf("status %d without a reason", status)
		}
		if status < 500 && e.Err == "" {
			return fmt.Errorf("%s: the answer has status %d: %s", method, status, text)
		}
		return refused{text}
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return fmt.Errorf("%s: the answer is empty", method)
	}
	if err := json.Unmarshal(b, out); err != nil {
		// An answer that cannot be used may say in Err why.
		var e errText
		if json.Unmarshal(b, &e) != nil || e.Err == "" {
			return fmt.Errorf("%s: the answer cannot be understood: %w: %q", method, err, cut(string(b[:min(len(b), 64)])))
		}
		return refused{cut(e.Err)}
	}
	if text := out.failure(); text != "" {
		return refused{cut(text)}
	}
	return nil
}

// ask is call for what may be repeated without harm: a plug-in that is just being restarted is waited for.
func (c *client) ask(ctx context.Context, method string, limit time.Duration, in any, out answer) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		err := c.call(ctx, method, limit, in, out)
		if err == nil || errors.As(err, new(refused)) || errors.Is(err, errNoCall) || errors.As(err, new(*tls.CertificateVerificationError)) || pause > 2*time.Second {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
}

// innermost is an HTTP client's error without the address, which says nothing.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		var op *net.OpError
		var cert *tls.CertificateVerificationError
		if next == nil || errors.As(err, &op) && error(op) == err || errors.As(err, &cert) && error(cert) == err {
			return err
		}
		err = next
	}
}

// cut makes a stranger's text short and harmless enough to be shown.
func cut(s string) string {
	s = strings.Map(func(r rune) rune {
		if printable.Hidden(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(printable.Cut(s, maxErrText), "?"))
	return strings.TrimSpace(s)
}

package login

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"skep.dev/libs/fault"
)

// Registry is how to reach one.
type Registry struct {
	Host string
	// PlainHTTP speaks to it without TLS: whoever is in between reads the password.
	PlainHTTP bool
	CA        string // file that vouches for its certificate, "" = the system's
	Agent     string // User-Agent
}

// errRefused: the registry knows no such user, or not with this password.
var errRefused = fault.Denied("unauthorized: incorrect username or password")

// Refused reports whether an error of Verify is the registry's no, not a failure on the way to it.
func Refused(err error) bool { return errors.Is(err, errRefused) }

const (
	verifyWithin = 30 * time.Second
	maxBody      = 1 << 20
)

// Verify logs in: it reports whether the registry takes the credentials.
func (r Registry) Verify(ctx context.Context, c Credentials) error {
	ctx, cancel := context.WithTimeout(ctx, verifyWithin)
	defer cancel()
	client, err := r.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	reply, err := r.ping(ctx, client, "")
	if err != nil {
		return err
	}
	if reply.StatusCode == http.StatusOK {
		return nil // it asks nobody who he is
	}
	if reply.StatusCode != http.StatusUnauthorized {
		return fmt.Errorf("log in to %s: it answers %s to /v2/: is it a registry?", r.Host, reply.Status)
	}
	authorization, err := r.authorize(ctx, client, challenges(reply.Header), c)
	if err != nil {
		return err
	}
	if reply, err = r.ping(ctx, client, authorization); err != nil {
		return err
	}
	switch reply.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return errRefused
	}
	return fmt.Errorf("log in to %s: it answers %s", r.Host, reply.Status)
}

func (r Registry) client() (*http.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if r.CA != "" {
		pem, err := os.ReadFile(r.CA)
		if err != nil {
			return nil, fmt.Errorf("read the registry's CA: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.Invalid("the registry's CA %s holds no certificate", r.CA)
		}
	}
	return &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > 5 {
			return errors.New("it leads in circles")
		}
		return r.secure(req.URL)
	}}, nil
}

// secure refuses what a password must not be sent to.
func (r Registry) secure(u *url.URL) error {
	if u.Scheme == "https" || u.Scheme == "http" && r.PlainHTTP {
		return nil
	}
	return fmt.Errorf("it leads to %s://%s, which is not https", u.Scheme, u.Host)
}

func (r Registry) ping(ctx context.Context, client *http.Client, authorization string) (*http.Response, error) {
	scheme, host := "https", r.Host
	if r.PlainHTTP {
		scheme = "http"
	}
	if host == Hub {
		host = "registry-1.docker.io"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/v2/", nil)
	if err != nil {
		return nil, fault.Invalid("log in to %s: %v", r.Host, err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	reply, _, err := r.do(client, req)
	return reply, err
}

// do sends a request and reads the answer, as far as anybody needs it.
func (r Registry) do(client *http.Client, req *http.Request) (*http.Response, []byte, error) {
	req.Header.Set("User-Agent", r.Agent)
	reply, err := client.Do(req)
	if err != nil {
		// The address may hold what the registry chose; the cause is what matters.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		if strings.Contains(err.Error(), "HTTP response to HTTPS client") {
			return nil, nil, fault.Invalid("log in to %s: it speaks HTTP without TLS, which shows the password to whoever is in between; if that is meant, say --plain-http", r.Host)
		}
		return nil, nil, fault.Unavailable("log in to %s: %v", r.Host, err)
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(io.LimitReader(reply.Body, maxBody))
	if err != nil {
		return nil, nil, fault.Unavailable("log in to %s: %v", r.Host, err)
	}
	return reply, body, nil
}

// authorize answers the registry's challenge: a token where it offers one, else user and password.
func (r Registry) authorize(ctx context.Context, client *http.Client, offers []challenge, c Credentials) (string, error) {
	for _, o := range offers {
		if o.scheme == "bearer" {
			return r.token(ctx, client, o, c)
		}
	}
	for _, o := range offers {
		if o.scheme == "basic" {
			if c.Password == "" {
				return "", errRefused // it has no use for an identity token
			}
			req := &http.Request{Header: http.Header{}}
			req.SetBasicAuth(c.Username, c.Password)
			return req.Header.Get("Authorization"), nil
		}
	}
	return "", fmt.Errorf("log in to %s: it asks for neither a password nor a token, and nothing else is known here", r.Host)
}

// token asks the server that the registry names for a token.
func (r Registry) token(ctx context.Context, client *http.Client, o challenge, c Credentials) (string, error) {
	at, err := url.Parse(o.params["realm"])
	if err != nil || at.Host == "" {
		return "", fmt.Errorf("log in to %s: it names no server that gives tokens", r.Host)
	}
	if err := r.secure(at); err != nil {
		return "", fault.Denied("log in to %s: %v", r.Host, err)
	}
	var req *http.Request
	if c.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "service": {o.params["service"]}, "client_id": {"skep"}, "refresh_token": {c.IdentityToken}}
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(form.Encode()))
	} else {
		q := at.Query()
		q.Set("account", c.Username)
		q.Set("client_id", "skep")
		if s := o.params["service"]; s != "" {
			q.Set("service", s)
		}
		at.RawQuery = q.Encode()
		req, err = http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	}
	if err != nil {
		return "", fmt.Errorf("log in to %s: %w", r.Host, err)
	}
	if c.IdentityToken != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		req.SetBasicAuth(c.Username, c.Password)
	}
	reply, body, err := r.do(client, req)
	if err != nil {
		return "", err
	}
	switch {
	case reply.StatusCode == http.StatusUnauthorized, reply.StatusCode == http.StatusForbidden, reply.StatusCode == http.StatusBadRequest && c.IdentityToken != "":
		return "", errRefused
	case reply.StatusCode != http.StatusOK:
		return "", fmt.Errorf("log in to %s: its token server %s answers %s", r.Host, at.Host, reply.Status)
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(body, &t) != nil || t.Token == "" && t.AccessToken == "" {
		return "", fmt.Errorf("log in to %s: its token server %s gives no token", r.Host, at.Host)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	return "Bearer " + t.Token, nil
}

// challenge is one of the ways to log in that a registry offers.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

var (
	param   = regexp.MustCompile(`([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))`)
	escaped = regexp.MustCompile(`\\(.)`)
)

// challenges reads the headers WWW-Authenticate, of which each is taken to hold one.
func challenges(h http.Header) (out []challenge) {
	for _, line := range h.Values("WWW-Authenticate") {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		c := challenge{strings.ToLower(scheme), map[string]string{}}
		for _, m := range param.FindAllStringSubmatch(rest, -1) {
			v := m[3]
			if v == "" {
				v = escaped.ReplaceAllString(m[2], "$1")
			}
			c.params[strings.ToLower(m[1])] = v
		}
		out = append(out, c)
	}
	return out
}

package login

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// hub is a registry with a server of tokens.
type hub struct {
	*httptest.Server
	challenge string
	status    int          // of /v2/ without credentials
	passwords atomic.Int64 // requests that carried a password
}

func newHub(t *testing.T, tls bool, challenge string) *hub {
	t.Helper()
	h := &hub{challenge: challenge, status: http.StatusUnauthorized}
	mux := http.NewServeMux()
	allowed := func(r *http.Request) bool {
		u, p, ok := r.BasicAuth()
		if ok {
			h.passwords.Add(1)
		}
		return u == "me" && p == word
	}
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r) && r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Add("WWW-Authenticate", strings.ReplaceAll(h.challenge, "HERE", h.URL))
			w.WriteHeader(h.status)
		}
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && r.PostFormValue("refresh_token") == "refresh" && r.PostFormValue("service") == "reg, istry":
			fmt.Fprint(w, `{"access_token":"good"}`)
		case r.Method == http.MethodGet && allowed(r) && r.FormValue("service") == "reg, istry" && r.FormValue("account") == "me":
			fmt.Fprint(w, `{"token":"good"}`)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	mux.HandleFunc("/useless", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{}`) })
	h.Server = httptest.NewUnstartedServer(mux)
	if tls {
		h.StartTLS()
	} else {
		h.Start()
	}
	t.Cleanup(h.Close)
	return h
}

func (h *hub) registry(t *testing.T) Registry {
	t.Helper()
	r := Registry{Host: h.Listener.Addr().String(), Agent: "skep/test", PlainHTTP: h.Certificate() == nil}
	if !r.PlainHTTP {
		r.CA = filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(r.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestVerify(t *testing.T) {
	good, bad := Credentials{Username: "me", Password: word}, Credentials{Username: "me", Password: "wrong"}
	token := Credentials{IdentityToken: "refresh"}
	const bearer = `Bearer realm="HERE/token",service="reg, istry",scope="a,b"`
	for _, tls := range []bool{true, false} {
		for _, x := range []struct {
			challenge string
			c         Credentials
			want      string
		}{
			{`Basic realm="x"`, good, ""},
			{`basic`, good, ""},
			{`Basic realm="x"`, bad, "unauthorized: incorrect username or password"},
			{`Basic realm="x"`, token, "unauthorized"},
			{bearer, good, ""},
			{bearer, bad, "unauthorized: incorrect username or password"},
			{bearer, token, ""},
			{bearer, Credentials{IdentityToken: "old"}, "unauthorized"},
			{`Bearer realm="HERE/useless"`, good, "gives no token"},
			{`Bearer realm="HERE/none"`, good, "answers 404"},
			{`Bearer service="x"`, good, "names no server that gives tokens"},
			{`Negotiate`, good, "asks for neither a password nor a token"},
			{``, good, "asks for neither a password nor a token"},
		} {
			h := newHub(t, tls, x.challenge)
			err := h.registry(t).Verify(t.Context(), x.c)
			if (err == nil) != (x.want == "") || err != nil && (!strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), word)) {
				t.Errorf("%s with %s, TLS %v: %v", x.challenge, x.c, tls, err)
			}
			if Refused(err) != strings.HasPrefix(x.want, "unauthorized") {
				t.Errorf("%s: %v is taken for the wrong kind of failure", x.challenge, err)
			}
		}
	}
}

// A password goes over TLS, to a certificate that somebody vouches for, unless plain HTTP was asked for.
func TestPasswordIsNotSentInTheClear(t *testing.T) {
	plain, secure := newHub(t, false, `Basic realm="x"`), newHub(t, true, `Basic realm="x"`)
	c := Credentials{Username: "me", Password: word}
	if err := (Registry{Host: plain.Listener.Addr().String()}).Verify(t.Context(), c); err == nil || !strings.Contains(err.Error(), "--plain-http") {
		t.Errorf("plain HTTP: %v", err)
	}
	if err := (Registry{Host: secure.Listener.Addr().String()}).Verify(t.Context(), c); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown CA: %v", err)
	}
	// Neither a token server nor a redirection leads out of TLS.
	down := newHub(t, true, `Bearer realm="`+plain.URL+`/token",service="x"`)
	if err := down.registry(t).Verify(t.Context(), c); err == nil || !strings.Contains(err.Error(), "is not https") {
		t.Errorf("token server without TLS: %v", err)
	}
	away := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/v2/", http.StatusFound))
	defer away.Close()
	r := (&hub{Server: away}).registry(t)
	if err := r.Verify(t.Context(), c); err == nil || !strings.Contains(err.Error(), "is not https") {
		t.Errorf("redirected: %v", err)
	}
	if n := plain.passwords.Load() + secure.passwords.Load(); n != 0 {
		t.Errorf("%d requests carried a password", n)
	}
	odd := newHub(t, true, `Basic realm="x"`)
	odd.status = http.StatusNotFound
	if err := odd.registry(t).Verify(t.Context(), c); err == nil || !strings.Contains(err.Error(), "is it a registry?") || odd.passwords.Load() != 0 {
		t.Errorf("%v", err)
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="r",scope="x:y:pull,push"`)
	f.Add(`Basic realm="a \"b\""`)
	f.Fuzz(func(t *testing.T, line string) {
		for _, c := range challenges(http.Header{"Www-Authenticate": {line}}) {
			if c.scheme != strings.ToLower(c.scheme) || c.params == nil {
				t.Errorf("%q: %v", line, c)
			}
		}
	})
}

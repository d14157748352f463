package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// faulty hands a call on to the plug-in itself, unless a file of the call's name says what to do instead:
//
//	hang          no answer, until the file is gone
//	crash         the process ends before it does anything; the file goes first, so the next process does not
//	crash-after   the process ends when it is done and before it answers; likewise
//	error TEXT    an error of that text
//	garbage       an answer that is none
//	empty         an answer without a body
//	slow TIME     the answer comes later (slow 3s)
func faulty(dir, inner string) http.Handler {
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "plugin"})
	proxy.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", inner)
	}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := path.Base(r.URL.Path)
		if _, after, ok := strings.Cut(call, "."); ok {
			call = after
		}
		file := filepath.Join(dir, call)
		b, _ := os.ReadFile(file) // none: nothing goes wrong
		what, text, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		switch what {
		case "hang":
			for r.Context().Err() == nil {
				if _, err := os.Stat(file); err != nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
		case "crash":
			_ = os.Remove(file)
			os.Exit(1)
		case "crash-after":
			_ = os.Remove(file)
			proxy.ServeHTTP(lost{}, r)
			os.Exit(1)
		case "error":
			http.Error(w, `{"Err":"`+text+`"}`, http.StatusInternalServerError)
			return
		case "garbage":
			_, _ = w.Write([]byte("<html>\x1b[31mnot JSON</html>"))
			return
		case "empty":
			return
		case "slow":
			if d, err := time.ParseDuration(text); err == nil {
				time.Sleep(d)
			}
		}
		proxy.ServeHTTP(w, r)
	})
}

// lost is where an answer goes that nobody hears.
type lost struct{}

func (lost) Header() http.Header         { return http.Header{} }
func (lost) Write(b []byte) (int, error) { return len(b), nil }
func (lost) WriteHeader(int)             {}

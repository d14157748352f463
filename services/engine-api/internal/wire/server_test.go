package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
)

// rig is a server on a socket, and a client for it.
type rig struct {
	t      *testing.T
	path   string
	srv    *Server
	client *http.Client
}

func serve(t *testing.T, limits Limits, may func(net.Conn) error, routes ...Route) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "d.sock")}
	l, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.srv = NewServer(Config{Routes: NewRoutes(routes...), Limits: limits, Log: zap.NewNop(), Server: "skep/1", May: may})
	done := make(chan error, 1)
	go func() { done <- r.srv.Serve(l) }()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return r.dial() }}
	r.client = &http.Client{Transport: tr, Timeout: time.Minute}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		r.srv.Shutdown(ctx)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) dial() (net.Conn, error) { return net.Dial("unix", r.path) }

// raw sends bytes as they are and returns the answer.
func (r *rig) raw(text string) (int, string) {
	r.t.Helper()
	c, err := r.dial()
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		r.t.Fatal(err)
	}
	return answer(r.t, bufio.NewReader(c))
}

func answer(t *testing.T, in *bufio.Reader) (int, string) {
	t.Helper()
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, message(b)
}

func (r *rig) ask(method, path, body string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://docker"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, message(b)
}

func message(b []byte) string {
	var m struct{ Message string }
	if json.Unmarshal(b, &m) == nil && m.Message != "" {
		return m.Message
	}
	return string(b)
}

func say(w http.ResponseWriter, r *Request) error {
	return WriteJSON(w, 200, map[string]string{"Message": r.Version.String() + " " + r.Var("id")})
}

func TestVersions(t *testing.T) {
	r := serve(t, Limits{}, nil, GET("/services/{id}", say))
	for path, want := range map[string]string{
		"/services/web":          "200 1.56 web",
		"/v1.41/services/web":    "200 1.41 web",
		"/v1.24/services/web":    "200 1.24 web",
		"/v1.56/services/web":    "200 1.56 web",
		"/v1.23/services/web":    "400 client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
		"/v0.99/services/web":    "400 client version 0.99 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
		"/v1.57/services/web":    "400 client version 1.57 is too new. Maximum supported API version is 1.56",
		"/v2.0/services/web":     "400 client version 2.0 is too new. Maximum supported API version is 1.56",
		"/v99999.1/services/web": "404 page not found",
		"/v1/services/web":       "404 page not found",
		"/v1.41":                 "404 page not found",
		"/":                      "404 page not found",
	} {
		resp, got := r.ask("GET", path, "")
		if got = fmt.Sprint(resp.StatusCode, " ", got); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		for h, want := range map[string]string{"Api-Version": "1.56", "Ostype": "linux", "Docker-Experimental": "false", "Server": "skep/1 (linux)", "Content-Type": "application/json"} {
			if resp.Header.Get(h) != want {
				t.Errorf("%s: %s is %q", path, h, resp.Header.Get(h))
			}
		}
	}
	if resp, body := r.ask("POST", "/services/web", ""); resp.StatusCode != 404 || body != "page not found" {
		t.Error(resp.Status, body)
	}
	if resp, body := r.ask("HEAD", "/services/web", ""); resp.StatusCode != 200 || body != "" {
		t.Error(resp.Status, body)
	}
}

// A name is one segment, whatever it is escaped as, and never a way to another endpoint.
func TestNames(t *testing.T) {
	image := GET("/distribution/{id...}/json", say)
	r := serve(t, Limits{}, nil, GET("/services/{id}", say), image, GET("/secret", say), GET("/containers/{id}/json", say))
	for path, want := range map[string]string{
		"/services/a%20b":                        "200 1.56 a b",
		"/services/%65%2e":                       "200 1.56 e.",
		"/services/a%2Fb":                        "404 page not found",
		"/services/..":                           "404 page not found",
		"/services/%2e%2e":                       "404 page not found",
		"/services/%2e%2e/secret":                "404 page not found",
		"/services/../secret":                    "404 page not found",
		"/services/.":                            "404 page not found",
		"/services/%2E":                          "404 page not found",
		"/services/":                             "404 page not found",
		"/services//web":                         "404 page not found",
		"//services/web":                         "404 page not found",
		"/services/a%0Ab":                        `400 invalid name: "a\nb"`,
		"/services/a%00":                         `400 invalid name: "a\x00"`,
		"/services/%ff":                          `400 invalid name: "\xff"`,
		"/services/" + strings.Repeat("x", 2000): "400 invalid name: it is longer than 1024 bytes",
		"/services/a/b":                          "404 page not found",
		"/containers//web/json":                  "200 1.56 web", // as Docker tells names of containers
		"/containers/%2Fweb/json":                "200 1.56 web",
		"/containers/%2F/json":                   "404 page not found",
		"/containers/%2F../json":                 "404 page not found",
		"/containers/%2Fa%2Fb/json":              "404 page not found",
		"/containers///web/json":                 "404 page not found",
		"/containers//json":                      "404 page not found",
		"/distribution/nginx:latest/json":        "200 1.56 nginx:latest",
		"/distribution/reg:5000/a/b:1/json":      "200 1.56 reg:5000/a/b:1",
		"/distribution/a/../b/json":              "404 page not found",
		"/distribution/json":                     "404 page not found",
		"/distribution/" + strings.Repeat("a/", 20) + "json": "404 page not found",
	} {
		code, got := r.raw("GET " + path + " HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
		if got = fmt.Sprint(code, " ", strings.TrimSpace(got)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if code, _ := r.raw("GET /services/%zz HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"); code != 400 {
		t.Error(code)
	}
}

func TestErrors(t *testing.T) {
	var next error
	r := serve(t, Limits{}, nil, GET("/x", func(http.ResponseWriter, *Request) error { return next }))
	for want, err := range map[string]error{
		"404 gone":                               fault.NotFound("gone"),
		"409 there":                              fault.Conflict("there"),
		"400 wrong":                              fault.Invalid("wrong"),
		"400 used":                               fault.Usage("used"),
		"403 no":                                 fault.Denied("no"),
		"503 later":                              fmt.Errorf("%w", fault.Unavailable("later")),
		"500 out of sequence":                    fault.New(fault.CodeSequence, "out of sequence"),
		"500 plain":                              errors.New("plain"),
		"501 other":                              Unserved("other"),
		"503 the cluster did not answer in time": context.DeadlineExceeded,
	} {
		next = err
		if resp, got := r.ask("GET", "/x", ""); fmt.Sprint(resp.StatusCode, " ", got) != want || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %s %s", err, resp.Status, got)
		}
	}
}

// A handler that panics is answered 500, and the server goes on. Half an answer is cut off, so that nobody takes it for a whole one.
func TestPanics(t *testing.T) {
	r := serve(t, Limits{}, nil, GET("/x", func(http.ResponseWriter, *Request) error { panic("oh") }), GET("/half", func(w http.ResponseWriter, _ *Request) error {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic("oh")
	}), GET("/ok", say))
	if resp, got := r.ask("GET", "/x", ""); resp.StatusCode != 500 || got != "internal error" {
		t.Error(resp.Status, got)
	}
	resp, err := r.client.Get("http://docker/half")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "half" {
		t.Errorf("%q %v", b, err)
	}
	resp.Body.Close()
	if resp, _ := r.ask("GET", "/ok", ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if c := r.srv.Counts(); c.Panics != 2 {
		t.Error(c)
	}
}

// What is sent in a body is one JSON value of the right kind, and no larger than the limit.
func TestBodies(t *testing.T) {
	r := serve(t, Limits{Body: 1000}, nil, POST("/x", func(w http.ResponseWriter, r *Request) error {
		var v struct{ Name string }
		unknown, err := r.ReadJSON(&v)
		if err != nil {
			return err
		}
		return WriteJSON(w, 200, map[string]string{"Message": v.Name + unknown})
	}))
	for body, want := range map[string]string{
		`{"Name":"web"}`:              "200 web",
		`{"Name":"web","Colour":"x"}`: "200 webColour",
		`{"Name":"web"} {}`:           "400 unexpected content after JSON",
		`{"Name":"web"`:               "400 invalid JSON: got EOF while reading request body",
		` `:                           "400 invalid JSON: got EOF while reading request body",
		`{"Name":7}`:                  "400 invalid JSON: json: cannot unmarshal number into Go struct field .Name of type string",
		`[`:                           "400 invalid JSON: ",
		`{"Name":"` + strings.Repeat("x", 1000) + `"}`: "413 request body too large: at most 1000 bytes are taken here",
	} {
		resp, got := r.ask("POST", "/x", body)
		if got = fmt.Sprint(resp.StatusCode, " ", got); !strings.HasPrefix(got, want) {
			t.Errorf("%.30s: %s, want %s", body, got, want)
		}
	}
	// Without a length in front the limit is met on the way.
	resp, err := r.client.Post("http://docker/x", "application/json", io.MultiReader(strings.NewReader(`{"Name":"`), strings.NewReader(strings.Repeat("x", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Error(resp.Status, message(b))
	}
	if code, got := r.raw("POST /x HTTP/1.1\r\nHost: docker\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"); code != 400 || !strings.Contains(got, "unsupported Content-Type header (text/plain): must be 'application/json'") {
		t.Error(code, got)
	}
	// Said to be large, and never sent.
	if code, _ := r.raw("POST /x HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"); code != 413 {
		t.Error(code)
	}
}

// Who dribbles headers or a body is let go of; others are served meanwhile.
func TestSlowClients(t *testing.T) {
	r := serve(t, Limits{HeaderTime: 300 * time.Millisecond, BodyTime: 300 * time.Millisecond, Requests: 1}, nil, GET("/ok", say), POST("/x", func(w http.ResponseWriter, r *Request) error {
		_, err := r.ReadJSON(&struct{}{})
		return err
	}))
	slow, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET /ok HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	if resp, _ := r.ask("GET", "/ok", ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	_ = slow.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(slow); err != nil { // it is closed
		t.Error(err)
	}
	if code, got := r.raw("POST /x HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"); code != 400 {
		t.Error(code, got)
	}
	if resp, _ := r.ask("GET", "/ok", ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// More requests at once than there is room for are refused, streams by themselves; and more connections.
func TestFlood(t *testing.T) {
	hold, entered := make(chan struct{}), make(chan struct{}, 10)
	wait := func(w http.ResponseWriter, r *Request) error {
		entered <- struct{}{}
		<-hold
		return say(w, r)
	}
	stream := GET("/stream", wait)
	stream.Stream = true
	r := serve(t, Limits{Requests: 2, Streams: 1}, nil, GET("/wait", wait), stream, GET("/ok", say))
	codes := make(chan int, 10)
	go1 := func(path string) {
		go func() {
			resp, err := r.client.Get("http://docker" + path)
			if err != nil {
				codes <- 0
				return
			}
			resp.Body.Close()
			codes <- resp.StatusCode
		}()
		<-entered
	}
	go1("/stream")
	go1("/wait")
	if resp, _ := r.ask("GET", "/ok", ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	go1("/wait")
	resp, got := r.ask("GET", "/ok", "")
	if resp.StatusCode != 503 || got != "too many requests at once: 2 are being answered; try again" || resp.Header.Get("Retry-After") != "1" {
		t.Error(resp.Status, got)
	}
	if resp, _ := r.ask("GET", "/stream", ""); resp.StatusCode != 503 {
		t.Error(resp.Status)
	}
	close(hold)
	for range 3 {
		if c := <-codes; c != 200 {
			t.Error(c)
		}
	}
	if resp, _ := r.ask("GET", "/ok", ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}

	few := serve(t, Limits{Connections: 2}, nil, GET("/ok", say))
	var open []net.Conn
	for range 2 {
		c, err := few.dial()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET /ok HTTP/1.1\r\nHost: docker\r\n\r\n")
		if code, _ := answer(t, bufio.NewReader(c)); code != 200 {
			t.Fatal(code)
		}
		open = append(open, c)
	}
	third, err := few.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if code, got := answer(t, bufio.NewReader(third)); code != 503 || got != "too many connections at once: try again" {
		t.Error(code, got)
	}
	open[0].Close()
	for end := time.Now().Add(30 * time.Second); few.srv.Counts().Connections > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a closed connection keeps its place")
		}
	}
	if resp, _ := few.ask("GET", "/ok", ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// Who may not come is answered so, whatever is asked.
func TestStrangers(t *testing.T) {
	r := serve(t, Limits{}, func(net.Conn) error { return Errorf(403, "permission denied") }, GET("/ok", say))
	for _, path := range []string{"/ok", "/v1.41/ok", "/nothing"} {
		if resp, got := r.ask("GET", path, ""); resp.StatusCode != 403 || got != "permission denied" {
			t.Error(path, resp.Status, got)
		}
	}
}

func FuzzPath(f *testing.F) {
	routes := NewRoutes(GET("/services/{id}", say), GET("/distribution/{id...}/json", say), GET("/_ping", say))
	for _, s := range []string{"/services/web", "/v1.41/services/a%2Fb", "/distribution/a/b/json", "/_ping"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		_, rest, err := cutVersion(path)
		if err != nil {
			return
		}
		_, vars, err := routes.find("GET", rest)
		if err != nil {
			return
		}
		for _, v := range vars {
			for _, s := range strings.Split(v, "/") {
				if s == "" || s == ".." || s == "." || strings.ContainsAny(s, "\n\x00") {
					t.Fatalf("%q: %q", path, vars)
				}
			}
		}
	})
}

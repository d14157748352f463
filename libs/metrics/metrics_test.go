package metrics

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"skep.dev/libs/fault"
)

// free is an address nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestServe(t *testing.T) {
	reg := New("1.2.3", "abc")
	broken := false
	reg.MustRegister(NewFamily(func(s *Sample) {
		if broken {
			s.Fail("skep_test_things", errors.New("the kernel does not say"))
			return
		}
		s.Set("skep_test_things", 3, "red")
		s.Set("skep_test_opened_total", 7)
	}).Gauge("skep_test_things", "Things, by colour.", "colour").Counter("skep_test_opened_total", "Things opened."))
	addr := free(t)
	s, err := Serve(addr, reg, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	code, body := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{
		`skep_build_info{commit="abc",version="1.2.3"} 1`, `skep_test_things{colour="red"} 3`, "# TYPE skep_test_opened_total counter", "skep_test_opened_total 7",
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	if code, body := get(t, "http://"+addr+"/"); code != 200 || !strings.Contains(body, `href="/metrics"`) {
		t.Errorf("/: %d %s", code, body)
	}
	for _, path := range []string{"/debug/pprof/", "/metrics/x", "/x"} {
		if code, _ := get(t, "http://"+addr+path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	broken = true
	if code, body := get(t, "http://"+addr+"/metrics"); code != 200 || strings.Contains(body, "skep_test_things{") || !strings.Contains(body, "skep_build_info") {
		t.Errorf("with a broken part: %d %s", code, body)
	}
	if err := Check(addr); !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken address: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Check(addr); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func TestBadAddresses(t *testing.T) {
	for _, addr := range []string{"9323", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:http", "192.0.2.1:9323", "http://127.0.0.1:9323"} {
		err := Check(addr)
		if !fault.Is(err, fault.CodeInvalid) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// An address that is not there yet is waited for, and nothing else is.
func TestServeWaitsForTheAddress(t *testing.T) {
	if _, err := listen("192.0.2.1:9323"); !errors.As(err, new(absent)) {
		t.Fatalf("an address of another machine: %v", err)
	}
	addr := free(t)
	looks := 0
	later := func(a string) (net.Listener, error) {
		if looks++; looks < 3 {
			return nil, absent{errors.New("not there")}
		}
		return listen(a)
	}
	s, err := serve(addr, New("1", "a"), zaptest.NewLogger(t), later)
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(until) {
			t.Fatal("it is never served")
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// One that never comes does not keep anything from ending.
	s, err = Serve("192.0.2.1:9323", New("1", "a"), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Serve("127.0.0.1:0", New("1", "a"), zaptest.NewLogger(t)); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("a port that is none: %v", err)
	}
}

package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep.dev/libs/leaktest"
)

// start builds and runs whoami on a free port of loopback and waits until it answers.
func start(t *testing.T, args ...string) (bin, addr string, cmd *exec.Cmd) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), "whoami")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	cmd = exec.Command(bin, append([]string{"-listen", addr}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return bin, addr, cmd
		}
		if time.Now().After(end) {
			t.Fatal("whoami does not listen")
		}
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestAnswersAndTurnsSick(t *testing.T) {
	bin, addr, _ := start(t, "-version", "v7")
	if code, body := get(t, "http://"+addr+"/"); code != 200 || !strings.Contains(body, "version: v7\n") || !strings.Contains(body, "client: 127.0.0.1:") {
		t.Errorf("HTTP: %d %s", code, body)
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.Write([]byte("hello"))
	buf := make([]byte, 500)
	if n, err := c.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "client: "+c.LocalAddr().String()) {
		t.Errorf("UDP: %v %s", err, buf[:n])
	}
	probe := func() error { return exec.Command(bin, "-listen", addr, "-probe").Run() }
	if err := probe(); err != nil {
		t.Errorf("a healthy whoami probed: %v", err)
	}
	get(t, "http://"+addr+"/sick")
	if code, _ := get(t, "http://"+addr+"/health"); code != 503 || probe() == nil {
		t.Errorf("a sick whoami says %d", code)
	}
	get(t, "http://"+addr+"/well")
	if code, _ := get(t, "http://"+addr+"/health"); code != 200 || probe() != nil {
		t.Errorf("a whoami that is well again says %d", code)
	}
}

func TestFinishesOpenRequestsWhenStopped(t *testing.T) {
	_, addr, cmd := start(t)
	began := make(chan struct{})
	answer := make(chan string, 1)
	go func() {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer c.Close()
		io.WriteString(c, "GET /slow?for=1s HTTP/1.0\r\n\r\n")
		r := bufio.NewReader(c)
		head, _ := r.ReadString('\n') // the request is inside the server
		close(began)
		b, _ := io.ReadAll(r)
		answer <- head + string(b)
	}()
	select {
	case <-began:
	case got := <-answer:
		t.Fatal(got)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if got := <-answer; !strings.Contains(got, "200 OK") || !strings.Contains(got, "version:") {
		t.Errorf("the open request got %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestCrash(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "whoami")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := exec.Command(bin, "-crash").Run(); err == nil {
		t.Error("-crash exits 0")
	}
}

func TestMain(m *testing.M) { leaktest.Main(m) }

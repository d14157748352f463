package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"skep.dev/libs/containers"
	"skep.dev/libs/fault"
	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
)

// exec makes a command and returns its id.
func (r *rig) exec(body string) string {
	r.t.Helper()
	code, got := r.do("POST", "/containers/"+taskID[:12]+"/exec", body)
	var id struct{ ID string }
	if err := json.Unmarshal([]byte(got), &id); err != nil || code != 201 || id.ID == "" {
		r.t.Fatalf("%d %s %v", code, got, err)
	}
	return id.ID
}

// start begins it and returns the connection after HTTP.
func (r *rig) start(id, version string) (*net.UnixConn, *bufio.Reader, *http.Response) {
	r.t.Helper()
	c, err := net.Dial("unix", r.paths.Docker())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	body := `{"Detach":false,"Tty":false}`
	fmt.Fprintf(c, "POST %s/exec/%s/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: %d\r\n\r\n%s", version, id, len(body), body)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return c.(*net.UnixConn), in, resp
}

func (r *rig) exited(id string, code int) {
	r.t.Helper()
	var d container.ExecInspectResponse
	r.await("the command has ended", func() bool {
		r.get("/exec/"+id+"/json", &d)
		return !d.Running && d.ExitCode != nil
	})
	if *d.ExitCode != code || d.ContainerID != taskID {
		r.t.Errorf("exit code %d, want %d: %+v", *d.ExitCode, code, d)
	}
}

func TestExec(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	n.exec = copyAll
	id := r.exec(`{"AttachStdin":true,"AttachStdout":true,"AttachStderr":true,"Cmd":["cat","-"],"Env":["A=b"],"User":"web","WorkingDir":"/srv","ConsoleSize":[24,80]}`)
	c, in, resp := r.start(id, "")
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "tcp" || resp.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Fatal(resp.Status, resp.Header)
	}
	fmt.Fprint(c, "to its input")
	if err := c.CloseWrite(); err != nil { // half-closed: the command's input ends, and its output comes
		t.Fatal(err)
	}
	b, err := io.ReadAll(in)
	var at container.ExecInspectResponse
	if r.get("/exec/"+id+"/json", &at); at.Running || at.ExitCode == nil || *at.ExitCode != 7 { // docker asks once, at the end of the stream
		t.Errorf("%+v", at)
	}
	if want := "\x01\x00\x00\x00\x00\x00\x00\x06cat -\n\x02\x00\x00\x00\x00\x00\x00\x0cto its input"; err != nil || string(b) != want {
		t.Errorf("%q %v", b, err)
	}
	r.exited(id, 7)
	q := n.execs[0]
	if q.TaskId != taskID || q.User != "web" || q.Dir != "/srv" || q.Width != 80 || q.Height != 24 || !q.Stdin || fmt.Sprint(q.Env) != "[A=b]" || n.actors[0] != "root" {
		t.Error(q, n.actors)
	}
	r.refused(409, "has been started already", "POST", "/exec/"+id+"/start", `{}`)

	// With a terminal, to a client of long ago, as it is.
	id = r.exec(`{"AttachStdout":true,"Tty":true,"Cmd":["x"]}`)
	_, in, resp = r.start(id, "/v1.30")
	if b, _ := io.ReadAll(in); string(b) != "x\n" || resp.Header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("%q %v", b, resp.Header)
	}
	// Without a client.
	id = r.exec(`{"Cmd":["x"]}`)
	if code, body := r.do("POST", "/exec/"+id+"/start", `{"Detach":true}`); code != 200 {
		t.Error(code, body)
	}
	r.exited(id, 7)
	// What cannot be started says so where its errors go.
	n.exec = func(context.Context, *skepv1.ExecRequest, containers.ExecIO) (int32, error) {
		return 127, fault.Invalid("exec: no such file")
	}
	id = r.exec(`{"AttachStderr":true,"Cmd":["x"]}`)
	_, in, _ = r.start(id, "")
	if b, _ := io.ReadAll(in); !strings.HasSuffix(string(b), "exec: no such file\r\n") || b[0] != 2 {
		t.Errorf("%q", b)
	}
	r.exited(id, 127)
}

func TestExecRefused(t *testing.T) {
	r, _ := newNodeRig(t, member.RoleWorker)
	at := "/containers/" + taskID + "/exec"
	r.refused(400, "No exec command specified", "POST", at, `{}`)
	r.refused(400, "No exec command specified", "POST", at, `{"Cmd":[""]}`)
	r.refused(501, "--privileged", "POST", at, `{"Cmd":["x"],"Privileged":true}`)
	r.refused(400, "at most 131072 are taken", "POST", at, `{"Cmd":["x","`+strings.Repeat("y", mostArgs)+`"]}`)
	r.refused(400, "invalid JSON", "POST", at, `{`)
	r.refused(404, "No such container: x", "POST", "/containers/x/exec", `{"Cmd":["x"]}`)
	r.refused(409, "container web.2."+oldID+" is not running", "POST", "/containers/"+oldID+"/exec", `{"Cmd":["x"]}`)
	r.refused(404, "No such exec instance: x", "POST", "/exec/x/start", `{}`)
	r.refused(404, "No such exec instance: x", "GET", "/exec/x/json", "")
	id := r.exec(`{"Cmd":["x"]}`)
	r.refused(409, "is not running", "POST", "/exec/"+id+"/resize?h=1&w=2", "")
	r.refused(400, "invalid size", "POST", "/exec/"+id+"/resize?h=1&w=-2", "")
	for range mostExecs {
		if code, body := r.do("POST", at, `{"Cmd":["x"]}`); code != 201 {
			if code != 503 || !strings.Contains(body, "the most that are kept") {
				t.Error(code, body)
			}
			return
		}
	}
	t.Error("any number of commands is kept")
}

// A client that goes away takes its command with it, one that only stops sending does not; the end of the service ends both.
func TestExecOfAClientThatGoes(t *testing.T) {
	r, n := newNodeRig(t, member.RoleWorker)
	ended := make(chan error, 2)
	control := make(chan *skepv1.StreamControl, 4)
	n.exec = func(ctx context.Context, _ *skepv1.ExecRequest, s containers.ExecIO) (int32, error) {
		fmt.Fprintln(s.Stdout, "begun")
		for {
			select {
			case m := <-s.Control:
				control <- m
			case <-ctx.Done():
				ended <- ctx.Err()
				return 0, ctx.Err()
			}
		}
	}
	id := r.exec(`{"AttachStdout":true,"Cmd":["sleep"]}`)
	c, in, _ := r.start(id, "")
	if frame(t, in) == "" {
		t.Fatal("nothing")
	}
	if code, body := r.do("POST", "/exec/"+id+"/resize?h=24&w=80", ""); code != 200 {
		t.Error(code, body)
	}
	if m := <-control; m.GetResize().GetHeight() != 24 || m.GetResize().GetWidth() != 80 {
		t.Error(m)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		t.Fatal("it ended with its input")
	case <-time.After(3 * 500 * time.Millisecond): // three looks of wire.Hijacked.Gone
	}
	c.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the command outlives its client")
	}
	r.exited(id, 137)
	// One is left running: the end of the service, in the rig's cleanup, ends it.
	id = r.exec(`{"AttachStdout":true,"Cmd":["sleep"]}`)
	_, in, _ = r.start(id, "")
	if frame(t, in) == "" {
		t.Fatal("nothing")
	}
}

package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/container"

	"skep.dev/libs/containers"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

const (
	// mostExecs is how many commands are remembered: those that run, were made and not begun, or have ended. execKept is how long of
	// those that do not run.
	mostExecs = 1000
	execKept  = 5 * time.Minute
	// mostArgs bounds a command, its environment included, bytes.
	mostArgs = 128 << 10
)

// execs are the commands that clients made, by id.
type execs struct {
	mu      sync.Mutex
	by      map[string]*execution
	running sync.WaitGroup
	over    bool // no more begin
}

// end waits for those that run.
func (x *execs) end() {
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
	x.running.Wait()
}

// execution is one command. What is below mu is the execs'.
type execution struct {
	id      string
	req     *skepv1.ExecRequest
	in      container.ExecCreateRequest
	control chan *skepv1.StreamControl

	touched time.Time
	begun   bool
	runs    bool
	code    *int
}

func (x *execs) add(e *execution) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, old := range x.by {
		if !old.runs && time.Since(old.touched) > execKept {
			delete(x.by, id)
		}
	}
	if len(x.by) >= mostExecs {
		return wire.Unavailable("%d commands were made here in the last minutes, the most that are kept; try again", mostExecs)
	}
	if x.by == nil {
		x.by = map[string]*execution{}
	}
	e.touched = time.Now()
	x.by[e.id] = e
	return nil
}

func (x *execs) get(id string) (*execution, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.by[id]; e != nil {
		return e, nil
	}
	return nil, wire.NotFound("No such exec instance: %s", id)
}

// begin marks a command as running, once.
func (x *execs) begin(e *execution) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return wire.Unavailable("the API of this node is ending")
	}
	if e.begun {
		return wire.Errorf(http.StatusConflict, "exec %s has been started already: make another", e.id)
	}
	e.begun, e.runs = true, true
	x.running.Add(1)
	return nil
}

func (x *execs) finish(e *execution, code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.runs, e.code, e.touched = false, &code, time.Now()
	x.running.Done()
}

func (s *Service) createExec(w http.ResponseWriter, r *wire.Request) error {
	n, c, err := s.container(r.Var("id"))
	if err != nil {
		return err
	}
	var in container.ExecCreateRequest
	if _, err := r.ReadJSON(&in); err != nil {
		return err
	}
	size := len(in.User) + len(in.WorkingDir)
	for _, a := range append(in.Cmd, in.Env...) {
		size += len(a)
	}
	switch {
	case translate.ContainerState(c) != container.StateRunning:
		return wire.Errorf(http.StatusConflict, "container %s is not running", translate.ContainerName(c, viewOf(n)))
	case len(in.Cmd) == 0 || in.Cmd[0] == "":
		return wire.Invalid("No exec command specified")
	case in.Privileged:
		return wire.Unserved("skep runs no command with more rights than its container has: leave --privileged out, or give the service what it needs (--cap-add)")
	case size > mostArgs:
		return wire.Invalid("the command and its environment are %d bytes, and at most %d are taken: send data over its input", size, mostArgs)
	}
	e := &execution{id: id.New(), in: in, control: make(chan *skepv1.StreamControl, 16), req: &skepv1.ExecRequest{
		TaskId: c.ID(), Args: in.Cmd, Tty: in.Tty, Stdin: in.AttachStdin, Env: in.Env, User: in.User, Dir: in.WorkingDir,
	}}
	if in.ConsoleSize != nil {
		e.req.Height, e.req.Width = uint32(in.ConsoleSize[0]), uint32(in.ConsoleSize[1])
	}
	if err := s.execs.add(e); err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: e.id})
}

func (s *Service) startExec(w http.ResponseWriter, r *wire.Request) error {
	var in container.ExecStartRequest
	if _, err := r.ReadJSON(&in); err != nil {
		return err
	}
	e, err := s.execs.get(r.Var("id"))
	if err != nil {
		return err
	}
	n, c, err := s.container(e.req.TaskId)
	if err != nil {
		return err
	}
	if translate.ContainerState(c) != container.StateRunning {
		return wire.Errorf(http.StatusConflict, "container %s is not running", translate.ContainerName(c, viewOf(n)))
	}
	if in.ConsoleSize != nil {
		e.req.Height, e.req.Width = uint32(in.ConsoleSize[0]), uint32(in.ConsoleSize[1])
	}
	if err := s.execs.begin(e); err != nil {
		return err
	}
	if in.Detach {
		e.req.Stdin = false
		go func() { // it ends with the command, or with the service, which waits for it
			s.execs.finish(e, s.runExec(s.ends, n, e, containers.ExecIO{Stdout: io.Discard, Stderr: io.Discard, Control: e.control}))
		}()
		return wire.None(w, http.StatusOK)
	}
	code := 1
	var conn *wire.Hijacked
	defer func() {
		s.execs.finish(e, code) // before the end of the stream, at which clients ask for the exit code
		if conn != nil {
			_ = conn.Close() // the client may be gone
		}
	}()
	kind := types.MediaTypeMultiplexedStream
	if e.req.Tty || r.Version.Before(42) {
		kind = types.MediaTypeRawStream
	}
	if conn, err = wire.Hijack(w, r, kind); err != nil {
		return err
	}
	code = s.attachExec(n, e, conn)
	return nil
}

// attachExec runs a command between the two ends of a connection. A client that finished sending ends the command's input, one that
// is gone ends the command.
func (s *Service) attachExec(n containers.Node, e *execution, conn *wire.Hijacked) int {
	ctx, cancel := context.WithCancel(s.ends)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		conn.Gone(ctx)
		if ctx.Err() == nil {
			cancel()
			_ = conn.Close() // ends a write to who does not read
		}
	})
	defer context.AfterFunc(s.ends, func() { _ = conn.Close() })() // likewise
	out := &frames{w: conn, raw: e.req.Tty, kind: 1, mu: &sync.Mutex{}}
	errs := &frames{w: conn, raw: e.req.Tty, kind: 2, mu: out.mu}
	streams := containers.ExecIO{Stdout: out, Stderr: errs, Control: e.control}
	if !e.in.AttachStdout {
		streams.Stdout = io.Discard
	}
	if !e.in.AttachStderr {
		streams.Stderr = io.Discard
	}
	if e.req.Stdin {
		// The command's end does not wait for a client that keeps its side open: closing the connection ends the reading.
		streams.Stdin = conn
	}
	code := s.runExec(ctx, n, e, streams)
	cancel()
	return code
}

// runExec runs a command to its end. Why it could not be started is said where its errors go, as Docker does.
func (s *Service) runExec(ctx context.Context, n containers.Node, e *execution, streams containers.ExecIO) int {
	code, err := n.Exec(asRoot(ctx), e.req, streams)
	if err != nil && ctx.Err() == nil {
		if code == 0 {
			code = 126
		}
		text := err.Error()
		var f *fault.Error
		if errors.As(err, &f) {
			text = f.Message
		}
		_, _ = io.WriteString(streams.Stderr, text+"\r\n") // the client is gone if this fails
	}
	if ctx.Err() != nil && code == 0 {
		code = 137 // it was killed
	}
	return int(code)
}

// frames writes a stream as it is, or in Docker's frames. Both streams of a command share one lock.
type frames struct {
	w    io.Writer
	raw  bool
	kind byte
	mu   *sync.Mutex
}

// largestFrame is how much goes into one frame.
const largestFrame = 32 << 10

func (f *frames) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.raw {
		return f.w.Write(p)
	}
	for done := 0; done < len(p); {
		part := p[done:min(len(p), done+largestFrame)]
		b := make([]byte, 8, 8+len(part))
		b[0] = f.kind
		binary.BigEndian.PutUint32(b[4:], uint32(len(part)))
		if _, err := f.w.Write(append(b, part...)); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

func (s *Service) resizeExec(w http.ResponseWriter, r *wire.Request) error {
	e, err := s.execs.get(r.Var("id"))
	if err != nil {
		return err
	}
	var size [2]uint32
	for i, key := range []string{"h", "w"} {
		n, err := strconv.ParseUint(r.Query.Get(key), 10, 16)
		if err != nil {
			return wire.Invalid("invalid size '%s' of a terminal: %s is a number up to 65535", r.Query.Get(key), key)
		}
		size[i] = uint32(n)
	}
	s.execs.mu.Lock()
	runs := e.runs
	s.execs.mu.Unlock()
	if !runs {
		return wire.Errorf(http.StatusConflict, "exec %s is not running", e.id)
	}
	m := &skepv1.StreamControl{Control: &skepv1.StreamControl_Resize{Resize: &skepv1.Resize{Height: size[0], Width: size[1]}}}
	for {
		select {
		case e.control <- m:
			return wire.None(w, http.StatusOK)
		default:
		}
		select { // only the newest counts
		case <-e.control:
		default:
		}
	}
}

func (s *Service) inspectExec(w http.ResponseWriter, r *wire.Request) error {
	e, err := s.execs.get(r.Var("id"))
	if err != nil {
		return err
	}
	s.execs.mu.Lock()
	defer s.execs.mu.Unlock()
	no := false
	out := container.ExecInspectResponse{
		ID: e.id, Running: e.runs, ExitCode: e.code, ContainerID: e.req.TaskId, CanRemove: !e.runs, OpenStdin: e.in.AttachStdin, OpenStdout: e.in.AttachStdout, OpenStderr: e.in.AttachStderr,
		ProcessConfig: &container.ExecProcessConfig{Tty: e.req.Tty, Entrypoint: e.in.Cmd[0], Arguments: e.in.Cmd[1:], Privileged: &no, User: e.in.User}, DetachKeys: []byte{},
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

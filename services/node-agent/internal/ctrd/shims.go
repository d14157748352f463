package ctrd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	shimapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"go.uber.org/zap"
)

// shimEars listens to the shims themselves while containerd is down. A new containerd throws away every shim whose container
// ended in the gap, and its exit code with it; so before one is started, each shim is asked to say how its container ends.
type shimEars struct {
	bundles string // <run-dir>/containerd/io.containerd.runtime.v2.task/skep
	log     *zap.Logger

	mu    sync.Mutex
	heard map[string]shimExit
	tell  func(id string, e shimExit)
}

type shimExit struct {
	pid  uint32
	code uint32
	at   time.Time
}

func newShimEars(runDir string, log *zap.Logger) *shimEars {
	return &shimEars{
		bundles: filepath.Join(runDir, "containerd", "io.containerd.runtime.v2.task", Namespace), log: log, heard: map[string]shimExit{},
	}
}

// listen connects to every shim there is; the connections last until a new containerd has had time to settle.
func (s *shimEars) listen(ctx context.Context) {
	entries, err := os.ReadDir(s.bundles)
	if err != nil {
		return // nothing ever ran
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	var asked, ended sync.WaitGroup
	for _, e := range entries {
		asked.Add(1)
		ended.Add(1)
		go func() {
			defer ended.Done()
			if err := s.ear(ctx, e.Name(), asked.Done); err != nil && ctx.Err() == nil {
				s.log.Debug("listen to a shim", zap.String("task", e.Name()), zap.Error(err))
			}
		}()
	}
	asked.Wait()
	go func() { ended.Wait(); cancel() }()
}

func (s *shimEars) ear(ctx context.Context, id string, asked func()) error {
	once := sync.OnceFunc(asked)
	defer once()
	b, err := os.ReadFile(filepath.Join(s.bundles, id, "bootstrap.json"))
	if err != nil {
		return err
	}
	var boot struct{ Address, Protocol string }
	if err := json.Unmarshal(b, &boot); err != nil || boot.Protocol != "ttrpc" {
		return fmt.Errorf("shim speaks %q: %w", boot.Protocol, err)
	}
	conn, err := net.DialTimeout("unix", strings.TrimPrefix(boot.Address, "unix://"), 200*time.Millisecond)
	if err != nil {
		return err
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	api := shimapi.NewTTRPCTaskClient(c)
	sctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	st, err := api.State(sctx, &shimapi.StateRequest{ID: id})
	cancel()
	if err != nil {
		return err
	}
	once() // it answers: its Wait will too
	r, err := api.Wait(ctx, &shimapi.WaitRequest{ID: id})
	if err != nil {
		return err
	}
	e := shimExit{pid: st.Pid, code: r.ExitStatus, at: r.ExitedAt.AsTime()}
	s.mu.Lock()
	s.heard[id] = e
	tell := s.tell
	s.mu.Unlock()
	if tell != nil {
		tell(id, e)
	}
	return nil
}

// onExit calls f for every exit heard from now on.
func (s *shimEars) onExit(f func(id string, e shimExit)) {
	s.mu.Lock()
	s.tell = f
	s.mu.Unlock()
}

func (s *shimEars) exit(id string) (shimExit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.heard[id]
	return e, ok
}

func (s *shimEars) forget(id string) {
	s.mu.Lock()
	delete(s.heard, id)
	s.mu.Unlock()
}

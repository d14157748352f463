package volume

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skep.dev/libs/fault"
)

// plug is a plug-in of a test.
type plug struct {
	mu    sync.Mutex
	have  map[string]map[string]string // options by volume
	held  map[string]bool              // volume and task
	hangs atomic.Bool
}

func (p *plug) Create(_ context.Context, name string, opts map[string]string) error {
	p.have[name] = opts
	return nil
}
func (p *plug) Remove(_ context.Context, name string) error { delete(p.have, name); return nil }
func (p *plug) Mount(_ context.Context, name, task string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[name+" "+task] = true
	return "/mnt/" + name, nil
}
func (p *plug) Unmount(_ context.Context, name, task string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hangs.Load() {
		return fmt.Errorf("the plug-in does not answer")
	}
	delete(p.held, name+" "+task)
	return nil
}
func (p *plug) Get(ctx context.Context, name string) (Info, error) {
	if p.hangs.Load() {
		<-ctx.Done()
		return Info{}, ctx.Err()
	}
	if p.have[name] == nil {
		return Info{}, ErrNotFound
	}
	return Info{Name: name}, nil
}
func (p *plug) List(context.Context) ([]Info, error)  { return nil, nil }
func (p *plug) Scope(context.Context) (string, error) { return ScopeGlobal, nil }

// A plug-in's volume is made at its first use, held until the plug-in has let go of it, by an agent that was killed in between
// too, and its name is not given to another.
func TestPluginVolumes(t *testing.T) {
	p := &plug{have: map[string]map[string]string{}, held: map[string]bool{}}
	cfg := Config{Drivers: func(string) (Driver, error) { return p, nil }, Plugins: func() []string { return []string{"rexray"} }}
	s := open(t, cfg)
	ctx := context.Background()
	w := Wanted{Driver: "rexray", Name: "web_data", Options: map[string]string{"size": "5"}, Labels: map[string]string{"a": "b"}}
	if at, err := s.Attach(ctx, "t1", w); err != nil || at != "/mnt/web_data" || p.have["web_data"]["size"] != "5" {
		t.Fatalf("%s %v %v", at, err, p.have)
	}
	if l, err := s.Labels("rexray", "web_data"); err != nil || l["a"] != "b" {
		t.Errorf("%v %v", l, err)
	}
	if _, err := s.Attach(ctx, "t2", Wanted{Name: "web_data"}); !fault.Is(err, fault.CodeConflict) || !strings.Contains(err.Error(), "say volume-driver=rexray") {
		t.Errorf("the same name without the driver: %v", err)
	}
	if _, err := s.Attach(ctx, "t2", Wanted{Name: "web_data", Driver: Local}); err != nil {
		t.Errorf("the node's own of that name: %v", err)
	}
	cfg.Root = s.root
	s = open(t, cfg) // the agent was killed
	p.hangs.Store(true)
	if err := s.Release(ctx, "t1"); err == nil || len(s.Holders("rexray", "web_data")) != 1 {
		t.Errorf("let go of without the plug-in: %v", err)
	}
	began := time.Now()
	if _, err := s.Attach(ctx, "t3", Wanted{Name: "plain"}); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("a local volume waited %s for a plug-in: %v", time.Since(began), err)
	}
	p.hangs.Store(false)
	if err := s.Sweep(ctx, func(string) bool { return false }); err != nil || len(p.held) > 0 || len(s.Holders("rexray", "web_data")) > 0 {
		t.Errorf("still held: %v %v", p.held, err)
	}
	if err := s.Remove(ctx, "rexray", "web_data"); err != nil || len(p.have) > 0 {
		t.Errorf("%v %v", p.have, err)
	}
	if l, err := s.Labels("rexray", "web_data"); err != nil || len(l) > 0 {
		t.Errorf("labels that outlive their volume: %v %v", l, err)
	}
}

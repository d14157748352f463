package cli

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/quorum"
	"skep.dev/libs/rpc"
	skepv1 "skep.dev/proto/skep/v1"
)

// aGroup is a fake of what brokers and services know of the managers.
type aGroup struct {
	present atomic.Uint32
	asOf    time.Time
}

func (g *aGroup) view() *skepv1.ListManagersReply {
	n := g.present.Load()
	r := &skepv1.ListManagersReply{Set: &skepv1.ManagerSet{}, Led: n > 1, Voters: 3, Present: n}
	for i, name := range []string{"m1", "m2", "m3"} {
		r.Set.Managers = append(r.Set.Managers, &skepv1.Manager{NodeId: name, Hostname: name, Addr: "10.0.0." + name[1:] + ":2377"})
		r.Views = append(r.Views, &skepv1.ManagerView{NodeId: name, Reachable: uint32(i) < n, Heard: timestamppb.New(g.asOf)})
	}
	return r
}

func (g *aGroup) Stale() (time.Time, bool) { return g.asOf, g.present.Load() < 2 }
func (g *aGroup) Close()                   {}

func (g *aGroup) MayWrite(context.Context) error {
	if g.present.Load() < 2 {
		return fault.Unavailable("%s", quorum.Text(g.view(), testNow))
	}
	return nil
}

// Without a majority what changes something is refused with one text, reads are answered with a warning, and nothing takes
// longer than three seconds.
func TestWithoutAMajority(t *testing.T) {
	g := &aGroup{asOf: time.Now().Add(-time.Minute)}
	c := newClusterUnder(t, g)
	bus, err := rpc.NewServer(c.nc, rpc.Config{Name: "fake-bus"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bus.Close() })
	err = errors.Join(
		api.Handle(bus, api.ManagerList, func(context.Context, *skepv1.Empty) (*skepv1.ListManagersReply, error) { return g.view(), nil }),
		// A service that does not know it yet waits for the store.
		api.Handle(bus, api.VolumeRelease, func(ctx context.Context, _ *skepv1.ReleaseClaimRequest) (*skepv1.ReleaseClaimReply, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
	if err != nil {
		t.Fatal(err)
	}
	g.present.Store(3)
	if r := c.run("node", "ls"); r.code != 0 || r.err != "" {
		t.Errorf("with a majority: %+v", r)
	}
	g.present.Store(1)
	clock := g.asOf.Local().Format("15:04:05")
	const typed = "Start them: systemctl start skep"

	began := time.Now()
	r := c.run("node", "ls")
	want := "Warning: The managers have lost their majority; missing: m2 (10.0.0.2:2377) since " + clock + ", m3 (10.0.0.3:2377) since " + clock + ". What follows is as of " + clock + ".\n"
	if r.code != 0 || r.err != want || !strings.Contains(r.out, "w1") {
		t.Errorf("a read: %+v, want the warning %q", r, want)
	}
	r = c.run("service", "create", "-d", "--name", "web", "img")
	if r.code != ExitError || !strings.HasPrefix(r.err, "Error: the managers have lost their majority: 1 of 3 votes is there, 2 are needed.") ||
		!strings.Contains(r.err, "\nMissing: m2 (10.0.0.2:2377) since "+clock) || !strings.Contains(r.err, typed) || !strings.Contains(r.err, "skep init --force-new-cluster") {
		t.Errorf("a change: %+v", r)
	}
	if len(c.services) > 0 {
		t.Error("it was made all the same")
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("both took %v", took)
	}

	began = time.Now()
	r = c.run("volume", "release", "data")
	if took := time.Since(began); r.code != ExitError || !strings.Contains(r.err, typed) || took > 3*time.Second {
		t.Errorf("after %v: %+v", took, r)
	}
}

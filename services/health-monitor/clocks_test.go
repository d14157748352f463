package health

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/subject"
)

// beatAt is a heartbeat: when it arrives, how far its clock is ahead, and what it took on its way.
type beatAt struct{ at, ahead, way time.Duration }

func TestClocks(t *testing.T) {
	const s = time.Second
	for name, x := range map[string]struct {
		beats []beatAt
		want  time.Duration
	}{
		"as ours":                          {[]beatAt{{0, 0, 0}, {s, 0, 0}}, 0},
		"ahead":                            {[]beatAt{{0, 9 * s, 0}, {s, 9 * s, 0}}, 9 * s},
		"behind":                           {[]beatAt{{0, -9 * s, 0}}, -9 * s},
		"held up now and then":             {[]beatAt{{0, 0, 4 * s}, {s, 0, s / 10}, {2 * s, 0, 5 * s}}, -s / 10},
		"a window that begins held up":     {[]beatAt{{0, 0, 0}, {s, 0, 0}, {11 * s, 0, 8 * s}}, 0},
		"set right meanwhile":              {[]beatAt{{0, 9 * s, 0}, {s, 9 * s, 0}, {11 * s, 0, 0}, {12 * s, 0, 0}, {13 * s, 0, 0}}, 0},
		"rare heartbeats, one held up":     {[]beatAt{{0, 0, 0}, {60 * s, 0, 20 * s}}, 0},
		"rare heartbeats, set back":        {[]beatAt{{0, 9 * s, 0}, {60 * s, 0, 0}, {120 * s, 0, 0}}, 0},
		"away for long, and set meanwhile": {[]beatAt{{0, 9 * s, 0}, {clockLife + s, 0, s / 2}}, -s / 2},
	} {
		t.Run(name, func(t *testing.T) {
			c, began := clocks{}, time.Now()
			var last time.Time
			for _, b := range x.beats {
				last = began.Add(b.at)
				c.hear("n", last.Add(b.ahead-b.way).UnixMilli(), last)
			}
			if got := c["n"].ahead(); (got - x.want).Abs() > 2*time.Millisecond {
				t.Errorf("ahead by %s, want %s", got, x.want)
			}
			if _, heard := c.list(0, last.Add(clockLife+time.Millisecond)); heard != 0 {
				t.Error("a clock nobody heard of for long is told")
			}
		})
	}
	c := clocks{}
	now := time.Now()
	c.hear("silent", 0, now)
	c.hear("liar", -1<<63, now)
	c.hear("b", now.UnixMilli(), now)
	c.hear("a", now.Add(5*time.Second).UnixMilli(), now)
	list, heard := c.list(time.Second, now)
	if heard != 3 || len(list) != 2 || list[0].NodeId != "a" || list[1].NodeId != "liar" || list[1].AheadMs >= 0 {
		t.Errorf("%d heard: %v", heard, list)
	}
}

// TestTheClocksAreTold: by any instance, of members alone, by what they say in their heartbeats.
func TestTheClocksAreTold(t *testing.T) {
	f := newField(t)
	f.admit("right", "fast")
	f.start("m1", f.n.Conn(t))
	beat := func(id string, ahead time.Duration) {
		b, err := proto.Marshal(&skepv1.Heartbeat{NodeId: id, Session: "s", SentUnixMs: time.Now().Add(ahead).UnixMilli()})
		if err == nil {
			err = f.nc.Publish(subject.Heartbeat(id), b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ask := func(beyond time.Duration) (*skepv1.ClocksReply, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return api.Call(ctx, f.nc, api.HealthClocks, &skepv1.ClocksRequest{BeyondMs: beyond.Milliseconds()})
	}
	var r *skepv1.ClocksReply
	var err error
	for deadline := time.Now().Add(30 * time.Second); ; {
		beat("right", 0)
		beat("fast", 20*time.Second)
		beat("stranger", time.Hour)
		if r, err = ask(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		if r.Heard == 2 || time.Now().After(deadline) {
			break
		}
	}
	if r.Heard != 2 || r.NodeId != "m1" || len(r.Clocks) != 1 || r.Clocks[0].NodeId != "fast" || r.Clocks[0].AheadMs < 15_000 || r.Clocks[0].AheadMs > 20_000 {
		t.Errorf("told %v", r)
	}
	if now := time.UnixMilli(r.NowUnixMs); time.Since(now).Abs() > time.Minute {
		t.Errorf("it is %s there", now)
	}
	if _, err := ask(-time.Second); !fault.Is(err, fault.CodeInvalid) {
		t.Errorf("less than nothing: %v", err)
	}
	// Of a node that is removed nothing is told.
	e, err := f.spec.Get(t.Context(), "node.fast")
	if err == nil {
		err = f.spec.Delete(t.Context(), "node.fast", e.Revision)
	}
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if r, err = ask(0); err != nil {
			t.Fatal(err)
		}
		if r.Heard == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a removed node's clock is told: %v", r)
		}
	}
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// copyOf is a manager whose disk is a copy of another's as it is now, on a machine of its own: other ports stand for another
// address.
func (f *fleet) copyOf(n string) *manned {
	f.t.Helper()
	m := f.members[n]
	c := &manned{f: f, cfg: m.cfg}
	c.cfg.DataDir = f.t.TempDir() + "/copy"
	// The manager may be running: files come and go.
	err := filepath.WalkDir(m.cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		to := c.cfg.DataDir + strings.TrimPrefix(path, m.cfg.DataDir)
		if err == nil && d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		var body []byte
		if err == nil {
			body, err = os.ReadFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, os.WriteFile(to, body, 0o600))
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ports := freePorts(f.t, 2)
	c.cfg.Listen, c.cfg.RoutePort, c.cfg.Hostname = fmt.Sprintf("127.0.0.1:%d", ports[0]), ports[1], "copy-of-"+n
	c.cfg.Log = f.log.With()
	return c
}

// told waits for an event about a second machine.
func told(t *testing.T, events *nats.Subscription, node string, texts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		m, err := events.NextMsgWithContext(ctx)
		if err != nil {
			t.Fatalf("no event tells of %q: %v", texts, err)
		}
		e := &skepv1.Event{}
		if err := protojson.Unmarshal(m.Data, e); err != nil || e.Id != node {
			continue
		}
		for _, x := range texts {
			if !strings.Contains(e.Message, x) {
				t.Errorf("the event says %q, not %q", e.Message, x)
			}
		}
		return
	}
}

// A copy of a manager's disk that is started beside it is refused before its store starts, alone and in a group; both addresses
// are named. Once the one before it is gone it takes its place.
func TestACopyOfAManager(t *testing.T) {
	f := found(t, "m2", "m3")
	events, err := f.nc.SubscribeSync(subject.Event("node", "*", "duplicate"))
	if err != nil {
		t.Fatal(err)
	}
	f.await(1, true, "m1-1")
	refused := func(c *manned) {
		t.Helper()
		c.run()
		err := c.end()
		if !errors.Is(err, ErrDuplicate) || !strings.Contains(err.Error(), "host-m1 at 127.0.0.1") || !strings.Contains(err.Error(), "this one, copy-of-m1 at 127.0.0.1") || !strings.Contains(err.Error(), "skep leave --force") {
			t.Fatalf("the copy ended with %v", err)
		}
	}
	refused(f.copyOf("m1"))
	told(t, events, idOf("m1"), "host-m1 at 127.0.0.1", "copy-of-m1 at 127.0.0.1")

	for _, n := range []string{"m2", "m3"} {
		f.role(n, true)
		f.members[n].start()
	}
	f.await(3, false, "m1-1", "m2-1", "m3-1")
	c := f.copyOf("m1")
	c.cfg.Advertise = c.cfg.Listen // it knows of the others by its group.json
	refused(c)
	if !f.list().GetLed() {
		t.Error("the group has lost its leader")
	}

	// Killed, it does not answer: whoever comes then is the manager, and it is the other one that waits.
	f.members["m1"].stop()
	c = f.copyOf("m1")
	c.cfg.Listen, c.cfg.RoutePort = f.members["m1"].cfg.Listen, f.members["m1"].cfg.RoutePort
	c.start()
	f.await(3, false, "m1-1", "m2-1", "m3-1")
	old := &manned{f: f, cfg: f.members["m1"].cfg}
	ports := freePorts(t, 2)
	old.cfg.Listen, old.cfg.RoutePort = fmt.Sprintf("127.0.0.1:%d", ports[0]), ports[1]
	old.run()
	if err := old.end(); !errors.Is(err, ErrDuplicate) || !strings.Contains(err.Error(), "copy-of-m1") {
		t.Errorf("the first ended with %v", err)
	}
}

// A copy that was started where it reached nobody, and reaches the others later, gets no route from any of them while the first
// is there: it neither votes nor is anything stored on it. It finds out, and ends.
func TestACopyThatWasCutOff(t *testing.T) {
	f := found(t, "m2", "m3")
	events, err := f.nc.SubscribeSync(subject.Event("node", "*", "duplicate"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"m2", "m3"} {
		f.role(n, true)
		f.members[n].start()
	}
	f.await(3, false, "m1-1", "m2-1", "m3-1")
	c := f.copyOf("m3")
	p, err := ReadPlace(c.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if c.m, err = NewManager(c.cfg, c.cfg.DataDir+".sock"); err != nil {
		t.Fatal(err)
	}
	// As after a start that reached nobody.
	b := c.m.Bus
	b.cfg.Name, b.cfg.Witness, b.cfg.Routes = p.Server, p.Witness, p.Routes
	c.m.group.begin(p)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-b.Serving():
	case <-time.After(patience):
		t.Fatal("the copy's broker does not start")
	}
	told(t, events, idOf("m3"), "two machines run as this manager", "127.0.0.1")
	f.said("refused a route: another machine runs as this manager")
	go c.m.group.watchSole(ctx)
	for refusals := 0; ; {
		for _, n := range []string{"m1", "m2"} {
			r, err := f.members[n].m.running().Routez(nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range r.Routes {
				if x.RemoteID == b.running().ID() {
					t.Fatalf("%s has a route of the copy", n)
				}
			}
		}
		if leader, _ := b.metaLeader(); leader != "" {
			t.Fatalf("the copy knows a leader: %s", leader)
		}
		select {
		case <-c.m.group.over:
			if err := c.m.group.left(nil); !errors.Is(err, ErrDuplicate) || !strings.Contains(err.Error(), "host-m3") {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(100 * time.Millisecond):
			if refusals++; refusals < 600 {
				continue
			}
			t.Error("the copy does not find out that it is one")
		}
		break
	}
	if !f.list().GetLed() {
		t.Error("the group has lost its leader")
	}
	// Every manager of the group has its routes: a copy costs nobody else's.
	f.await(3, false, "m1-1", "m2-1", "m3-1")
}

// Which of two servers of a name is let in: the one that is there, and of two that come at once the first.
func TestDoubles(t *testing.T) {
	now := time.Now()
	a, b := holder{id: "A", addr: "10.0.0.1"}, "B"
	for _, c := range []struct {
		what  string
		there []holder
		last  holder
		id    string
		want  string
	}{
		{"nobody is there", nil, holder{}, b, ""},
		{"it is there itself: its other routes", []holder{a}, a, "A", ""},
		{"another is there", []holder{a}, a, b, "A"},
		{"another was let in a moment ago", nil, holder{id: "A", at: now.Add(-time.Second)}, b, "A"},
		{"another was let in, and is gone", nil, holder{id: "A", at: now.Add(-3 * time.Second)}, b, ""},
	} {
		d := doubles{last: map[string]holder{"m1-1": c.last}}
		got := d.other("m1-1", c.id, "10.0.0.2", c.there, now)
		if (got == nil) != (c.want == "") || got != nil && got.id != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	d := doubles{}
	for i := range 1000 {
		d.other(fmt.Sprint("m", i), "A", "", nil, now.Add(time.Duration(i)*time.Second))
	}
	if n := len(d.last); n > 62 {
		t.Errorf("%d names are remembered", n)
	}
}

package bus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestLaggards(t *testing.T) {
	behind := func(lag uint64) *jetstream.PeerInfo { return &jetstream.PeerInfo{Name: "m3", Lag: lag} }
	for name, looks := range map[string]struct {
		peers []*jetstream.PeerInfo // one a second
		want  int                   // the look at which it is stuck, -1: at none
	}{
		"current":            {[]*jetstream.PeerInfo{{Name: "m3", Current: true}, {Name: "m3", Current: true}}, -1},
		"comes nearer":       {[]*jetstream.PeerInfo{behind(90), behind(80), behind(70), behind(60), behind(50), behind(40), behind(30), behind(20)}, -1},
		"stays behind":       {[]*jetstream.PeerInfo{behind(31), behind(31), behind(31), behind(31), behind(31), behind(31)}, 5},
		"falls behind":       {[]*jetstream.PeerInfo{behind(31), behind(32), behind(33), behind(34), behind(35), behind(36)}, 5},
		"nearer in between":  {[]*jetstream.PeerInfo{behind(31), behind(31), behind(30), behind(31), behind(31), behind(31), behind(31), behind(31)}, 7},
		"to leave":           {[]*jetstream.PeerInfo{{Name: "m4-1", Lag: 9}, {Name: "m4-1", Lag: 9}, {Name: "m4-1", Lag: 9}, {Name: "m4-1", Lag: 9}, {Name: "m4-1", Lag: 9}, {Name: "m4-1", Lag: 9}}, -1},
		"offline":            {[]*jetstream.PeerInfo{{Name: "m3", Lag: 9, Offline: true}, {Name: "m3", Lag: 9, Offline: true}}, -1},
		"current in between": {[]*jetstream.PeerInfo{behind(9), behind(9), behind(9), {Name: "m3", Current: true}, behind(9), behind(9), behind(9)}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(0, 0)
			l := newLaggards("m4-1")
			l.now = func() time.Time { return now }
			at := -1
			for i, p := range looks.peers {
				s := &jetstream.StreamInfo{Config: jetstream.StreamConfig{Name: "KV_spec"}, Cluster: &jetstream.ClusterInfo{Leader: "m1", Replicas: []*jetstream.PeerInfo{{Name: "m2", Current: true}, p}}}
				if on := l.stuck(s); on != "" && at < 0 {
					at = i
					if on != "m3" {
						t.Errorf("%s is stuck", on)
					}
				}
				now = now.Add(time.Second)
			}
			if at != looks.want {
				t.Errorf("stuck at look %d, want %d", at, looks.want)
			}
		})
	}
}

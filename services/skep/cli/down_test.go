package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// hang has the broker believe that the node listens, as it does for a while after the power went.
func (c *cluster) hang(node string) {
	c.t.Helper()
	sub, err := c.nc.Subscribe(subject.Node(node, ">"), func(*nats.Msg) {})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = sub.Unsubscribe() })
	c.flush()
}

// Whatever is asked of a node that is known to be down is refused, not waited for.
func TestANodeThatIsDownIsNotWaitedFor(t *testing.T) {
	c := newCluster(t)
	c.hang(nodeID)
	c.services = []*skepv1.Service{webService()}
	c.tasks = []*skepv1.Task{webTask("t1aaaaaaaaaaaaaaaaaaaaaaa", 1, running)}
	c.nodes[0].Status = &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN, SinceUnixMs: testNow.Add(-3 * time.Minute).UnixMilli()}
	archive := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(archive, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	const why = "node w1 is down, not heard since "
	for _, args := range []string{
		"image ls --node w1", "image pull --node w1 httpd", "image rm --node w1 httpd", "image load --node w1 -i " + archive,
		"volume ls --node w1", "volume create --node w1 v", "volume update --node w1 --label-add a=b v", "volume rm --node w1 v", "volume prune --force --node w1",
		"mesh ls --node w1", "mesh trace --node w1 8080", "exec web.1 true", "service logs --raw web.1",
	} {
		r := c.run(strings.Fields(args)...)
		if r.code == 0 || !strings.Contains(r.err, why) {
			t.Errorf("%s: %d %s%s", args, r.code, r.out, r.err)
		}
	}
	// Of a service's tasks the others' logs are shown.
	if r := c.run("service", "logs", "web"); !strings.Contains(r.err, "no log of web.1") || !strings.Contains(r.err, why) {
		t.Errorf("%d %s", r.code, r.err)
	}
}

// A node goes down while it works: whoever waits for it hears that.
func TestANodeGoesDownMeanwhile(t *testing.T) {
	c := newCluster(t)
	c.hang(nodeID)
	looks := 0
	c.on = func(req proto.Message) error {
		if _, is := req.(*skepv1.Ref); is {
			if looks++; looks > 2 {
				c.nodes[0].Status = &skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_DOWN}
			}
		}
		return nil
	}
	want(t, c.run("image", "pull", "--node", "w1", "httpd"), 1, "", "node w1 is down: nothing can be asked of it")
}

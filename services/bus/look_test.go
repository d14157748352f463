package bus

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"skep.dev/libs/id"
	"skep.dev/libs/pki"
	"skep.dev/libs/pki/pkitest"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

// `nats micro ls` has the services of nodes, too: several of them share a connection, whose answers the broker lets through
// because they were asked for.
func TestWhoLooksSeesTheServicesOfNodes(t *testing.T) {
	ca := pkitest.NewCA(t)
	node := id.New()
	b := run(t, lone(t, ca, node))
	want := []string{"skep-agent", "skep-agent-images", "skep-certificate", "skep-mesh", "skep-more"}
	if len(want) != servicesOfNode {
		t.Fatalf("room for %d services, tried with %d", servicesOfNode, len(want))
	}
	connections := map[string]*nats.Conn{}
	agent, err := b.InProcess(string(RoleAgent))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	connections["agent of a manager"] = agent
	connections["worker"] = dial(t, b, pkitest.Store(t, ca, pki.Identity{NodeID: id.New(), Role: pki.Worker}, time.Hour)).Conn
	for on, nc := range connections {
		t.Run(on, func(t *testing.T) {
			for _, name := range want {
				srv, err := rpc.NewServer(nc, rpc.Config{Name: name, Version: "1.0.0"})
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := srv.Close(); err != nil {
						t.Error(err)
					}
				}()
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			p := dial(t, b, userStore(t, ca, "ada", pki.Admin), nats.CustomInboxPrefix(subject.Inbox("user-ada")))
			for _, verb := range []micro.Verb{micro.PingVerb, micro.InfoVerb, micro.StatsVerb} {
				on := p.NewRespInbox()
				sub, err := p.SubscribeSync(on)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.PublishRequest("$SRV."+verb.String(), on, nil); err != nil {
					t.Fatal(err)
				}
				var got []string
				for len(got) < len(want) {
					m, err := sub.NextMsg(10 * time.Second)
					if errors.Is(err, nats.ErrTimeout) {
						break
					} else if err != nil {
						t.Fatal(err)
					}
					name, _, _ := strings.Cut(strings.SplitN(string(m.Data), `"name":"`, 2)[1], `"`)
					got = append(got, name)
				}
				if slices.Sort(got); !slices.Equal(got, want) {
					t.Errorf("%s is answered by %q, want %q", verb, got, want)
				}
			}
		})
	}
}

package bus

import (
	"context"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// replicas are those that new streams get.
func (g *group) replicas() int {
	set, _ := g.known()
	return max(1, int(set.GetReplicas()))
}

// lead follows the set, and leads the group whenever this manager has the lease, until ctx ends.
func (g *group) lead(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) {
	feed := g.follow(ctx, func(apply func(kv.Delta)) *kv.Feed {
		return kv.Follow(ctx, js, subject.NodeB, apply, keys.Managers.Key())
	})
	defer feed.Close()
	<-ctx.Done()
}

package bus

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats.go"

	"skep.dev/libs/subject"
)

// InProcess connects one of the manager's own parts: state, scheduler, health, vault, mesh (each may write only
// the keys it owns), agent (the node's own agent), manager (everything: the assembly that makes the streams), admin (what
// local root may do), sys (the system account). The caller closes the connection. The inbox prefix of a connection that
// is not made here would not be permitted; use the one this returns.
func (b *Bus) InProcess(name string) (*nats.Conn, error) {
	return b.connect(context.Background(), name)
}

func (b *Bus) connect(_ context.Context, name string) (*nats.Conn, error) {
	role := Role(name)
	if role == RoleAdmin {
		role = RoleLocal
	}
	if !isService(role) && role != RoleManager && role != RoleAgent && role != RoleLocal && role != RoleDoor && name != systemUser && name != doorUser {
		return nil, fmt.Errorf("connect %s to the bus: no such service", name)
	}
	nc, err := nats.Connect("", nats.InProcessServer(inProcess{b}), nats.Name("skep-"+name),
		nats.UserInfo(string(role), b.secret), nats.CustomInboxPrefix(subject.Inbox(inboxName(role, b.cfg.NodeID))),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.Timeout(10*time.Second),
		nats.PermissionErrOnSubscribe(true), nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			sub := ""
			if s != nil {
				sub = s.Subject
			}
			b.log.Sugar().Warnw("in-process connection", "service", name, "subject", sub, "err", err)
		}))
	if err != nil {
		return nil, fmt.Errorf("connect %s to the bus: %w", name, err)
	}
	return nc, nil
}

// InProcessConn is one raw connection for the relay of local root: whatever the far end says, it is an admin.
func (b *Bus) InProcessConn() (net.Conn, error) { return inProcess{b}.InProcessConn() }

// inProcess makes pipes to the server that runs now.
type inProcess struct{ b *Bus }

func (p inProcess) InProcessConn() (net.Conn, error) {
	p.b.mu.Lock()
	main := p.b.main
	p.b.mu.Unlock()
	if main == nil {
		return nil, errStopped
	}
	return main.InProcessConn()
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
)

const (
	// joinPayload bounds a request to join and its answer: a token and two certificates take 3 KB.
	joinPayload = 16 << 10
	// joinSubs: a joiner has one inbox.
	joinSubs = 4
	// admitWithin ends a request that the vault does not answer.
	admitWithin = 10 * time.Second

	// doorUser, as the user name of an in-process connection, asks for the joiners' account.
	doorUser = "door-outside"
)

// joinAccount is where connections without a certificate to a server are: nothing they say is heard in the cluster's account,
// and, since no other server has an account of that name, nor at any other manager, whose door would know nothing of them.
func joinAccount(server string) string { return "JOIN_" + server }

// accounts of a server: the cluster's, the system's and the joiners', whose limits only a configuration can express.
func accounts(name string) ([]*server.Account, error) {
	var o server.Options
	if err := o.ProcessConfigString(fmt.Sprintf("accounts { %q { limits { max_payload: %d, max_subs: %d } } }", joinAccount(name), joinPayload, joinSubs)); err != nil {
		return nil, fmt.Errorf("make the broker's accounts: %w", err)
	}
	return append(o.Accounts, server.NewAccount(systemAccount), server.NewAccount(accountName)), nil
}

// door carries requests to join from the joiners' account to the vault, and the answers back. What floods it floods
// nobody's connection but its own: it passes one request at a time of each joiner, five in all, and cuts off who sends more.
type door struct {
	b       *Bus
	outside *nats.Conn
	inside  *nats.Conn
}

func (b *Bus) openDoor(ctx context.Context) (*door, error) {
	d := &door{b: b}
	var err error
	if d.outside, err = b.connect(ctx, doorUser); err != nil {
		return nil, err
	}
	if d.inside, err = b.connect(ctx, string(RoleDoor)); err != nil {
		d.close()
		return nil, err
	}
	sub, err := d.outside.QueueSubscribe(subject.Join("*"), subject.Queue, d.pass)
	if err == nil {
		// What joiners can send before they are cut off; beyond it requests are lost and asked again.
		err = sub.SetPendingLimits(64<<10, 16<<20)
	}
	if err == nil {
		_, err = d.outside.QueueSubscribe(subject.Epoch("*"), subject.Queue, d.tell)
	}
	if err == nil {
		err = d.outside.FlushTimeout(admitWithin)
	}
	if err != nil {
		d.close()
		return nil, fmt.Errorf("listen for joining nodes: %w", err)
	}
	return d, nil
}

func (d *door) pass(m *nats.Msg) {
	name := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	ctx, end, ok := d.b.guests.ask(name, admitWithin)
	if !ok {
		return
	}
	// The broker does not check where an answer is to go.
	if subject.InboxOwner(m.Reply) != name || !subject.MayHear(m.Subject, m.Reply) {
		end()
		return
	}
	go func() {
		defer end()
		ask := nats.NewMsg(m.Subject)
		ask.Data = m.Data
		for _, h := range []string{rpc.HeaderContentType, rpc.HeaderAccept, rpc.HeaderTrace} {
			if v := m.Header.Get(h); v != "" {
				ask.Header.Set(h, v)
			}
		}
		answer, err := d.inside.RequestMsgWithContext(ctx, ask)
		switch {
		case errors.Is(err, context.Canceled):
			return // the joiner is gone
		case err != nil:
			answer = rpc.ErrorReply(fault.CodeUnavailable, "the manager admits no nodes at the moment: its vault does not answer")
		}
		answer.Subject, answer.Reply, answer.Sub = m.Reply, "", nil
		if err := d.outside.PublishMsg(answer); err != nil {
			d.b.slips.Warn("answer a joining node", zap.Error(err))
		}
	}()
}

func (d *door) close() {
	for _, nc := range []*nats.Conn{d.outside, d.inside} {
		if nc != nil {
			nc.Close()
		}
	}
}

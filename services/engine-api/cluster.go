package engine

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/member"
	"skep.dev/libs/quorum"
	"skep.dev/libs/rpc"
	"skep.dev/services/engine-api/internal/wire"
)

const (
	// dialWithin bounds one attempt to reach the manager of this machine.
	dialWithin = 2 * time.Second
	// patience is how long a request is tried again while the manager starts or another takes over; docker waits as long as it
	// takes, people do not.
	patience = 8 * time.Second
	// againEvery paces it.
	againEvery = 100 * time.Millisecond
	// readWithin is how long the first try of a read is waited for, writeWithin that of a change that may be asked again. Each try
	// has twice the time.
	readWithin  = 1500 * time.Millisecond
	writeWithin = 5 * time.Second
	// callWithin bounds a request in all: an image's name may have to be looked up far away.
	callWithin = 30 * time.Second
	// lostFor is how long a lost connection is tried again before the next request begins with a new one: the node may not be a
	// manager any more.
	lostFor = 5 * time.Second
)

// localUser names this connection in the broker's logs; the socket's file mode is what admits it.
const localUser = "admin"

// cluster is the way to the manager of this machine: the socket that the skep command of local root uses. The connection is made
// when somebody asks, and shared by all requests.
type cluster struct {
	paths member.Paths
	log   *zap.Logger

	patience time.Duration // how long a request is tried again

	mu   sync.Mutex
	nc   *nats.Conn
	up   context.Context // ends when the connection is lost
	down context.CancelFunc
	shut bool
}

type unixDialer string

func (d unixDialer) Dial(string, string) (net.Conn, error) {
	return net.DialTimeout("unix", string(d), dialWithin)
}

// conn is the connection to the manager. Without one the error is Docker's for what this node is.
func (c *cluster) conn() (*nats.Conn, error) {
	nc, _, err := c.connected()
	return nc, err
}

// connected is conn, and a context that ends when the connection is lost: what was asked on it is not answered any more.
func (c *cluster) connected() (*nats.Conn, context.Context, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		return nil, nil, wire.Unavailable("the API of this node is ending")
	}
	if c.nc != nil && !c.nc.IsClosed() {
		return c.nc, c.up, nil
	}
	// The address is never looked up: the dialer goes to the socket.
	nc, err := nats.Connect("nats://127.0.0.1:2377", nats.SetCustomDialer(unixDialer(c.paths.BrokerNow())), nats.UserInfo(localUser, ""), nats.Name("skep-engine"),
		nats.IgnoreDiscoveredServers(), nats.Timeout(dialWithin), nats.ReconnectWait(againEvery), nats.ReconnectJitter(0, 0), nats.MaxReconnects(int(lostFor/againEvery)),
		nats.ReconnectBufSize(-1), // what is said while it is lost fails at once, and is asked again
		nats.PingInterval(2500*time.Millisecond), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { c.lost() }), nats.ReconnectHandler(func(nc *nats.Conn) { c.back(nc) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.log.Warn("connection to the manager of this node", zap.Error(err))
		}))
	if err != nil {
		return nil, nil, c.standing(err)
	}
	c.nc = nc
	c.up, c.down = context.WithCancel(context.Background())
	return nc, c.up, nil
}

// lost ends what waits for an answer on the connection.
func (c *cluster) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil {
		c.down()
	}
}

// back: what is asked from now on can be answered.
func (c *cluster) back(nc *nats.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nc == nc {
		c.up, c.down = context.WithCancel(context.Background())
	}
}

// Docker's words for nodes that do not serve the cluster.
const (
	sayWorker = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. " +
		"Please run this command on a manager node or promote the current node to a manager."
	sayNone = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.` +
		" (In skep: skep init, skep join.)"
	sayLocked = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`
)

// standing says why there is no manager behind the socket.
func (c *cluster) standing(cause error) error {
	rec, err := member.Load(c.paths)
	switch {
	case errors.Is(err, member.ErrNoNode):
		return wire.Unavailable("%s", sayNone)
	case err != nil:
		return err
	case rec.Role == member.RoleManager:
		return fault.Unavailable("the manager on this node does not take connections: it is starting, or stopping (%v)", cause)
	case rec.Role == member.RoleWitness:
		return wire.Unavailable("This node is a witness: it votes, and answers no commands. Please run this command on a manager node.")
	}
	return wire.Unavailable("%s", sayWorker)
}

func (c *cluster) close() {
	c.mu.Lock()
	nc := c.nc
	c.nc, c.shut = nil, true
	if c.down != nil {
		c.down()
	}
	c.mu.Unlock()
	if nc != nil {
		nc.Close()
	}
}

// call asks the cluster, and asks again for a while when no manager is there to answer. A change whose answer was lost is asked again
// under the id it had, by which the managers know it.
func call[Q, R proto.Message](ctx context.Context, c *cluster, e api.Endpoint[Q, R], req Q) (R, error) {
	var none R
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	request, within := rpc.Request{}, readWithin
	if e.Once {
		request.ID, within = id.New(), writeWithin
	}
	near := true
	for began := time.Now(); ; {
		nc, up, err := c.connected()
		if err == nil {
			if n := proto.Size(req); int64(n) > nc.MaxPayload() {
				return none, wire.Errorf(413, "the request is %d bytes for skep, and %d fit: put large values into configs or secrets", n, nc.MaxPayload())
			}
			asked, end := rpc.WithRequest(ctx, request), func() {}
			if !near {
				asked = rpc.Anywhere(asked)
			}
			if e.Repeatable() && time.Since(began)+within < c.patience {
				asked, end = context.WithTimeout(asked, within)
				within *= 2
			}
			r, aerr := askWhile(asked, up, nc, e, req)
			end()
			if err = aerr; err == nil {
				return r, nil
			}
			near = near && errors.Is(err, rpc.ErrNobody)
			request.Again = request.Again || request.ID != "" && maybeMade(err)
		}
		if ctx.Err() != nil || time.Since(began) >= c.patience || !again(e.Verb, err) {
			return none, err
		}
		select {
		case <-ctx.Done():
			return none, err
		case <-time.After(againEvery):
		}
	}
}

// errBroke is the end of a request whose answer would have come on a connection that was lost.
var errBroke = fault.Unavailable("the connection to the manager of this node broke before it answered")

// askWhile is one request, for as long as the connection is up.
func askWhile[Q, R proto.Message](ctx, up context.Context, nc *nats.Conn, e api.Endpoint[Q, R], req Q) (R, error) {
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	defer context.AfterFunc(up, func() { cut(errBroke) })()
	r, err := api.Call(ctx, nc, e, req)
	if err != nil && errors.Is(context.Cause(ctx), errBroke) {
		return r, errBroke
	}
	return r, err
}

// again: a request nobody heard may be repeated, and one that was not answered if the verb is of that kind. What one node answers is
// not: that it does not is the answer.
func again(v *api.Verb, err error) bool {
	if v.Placed() {
		return false
	}
	return errors.Is(err, rpc.ErrNobody) || fault.Is(err, fault.CodeUnavailable) && v.Repeatable()
}

// maybeMade reports whether a change that ended so may have been made all the same.
func maybeMade(err error) bool {
	return fault.Is(err, fault.CodeUnavailable) && !errors.Is(err, rpc.ErrNobody) && !quorum.Refused(err)
}

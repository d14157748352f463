package bus

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// The steps managers come and go by. The order is the caller's (one step at a time, each only when every member is
// current) and comes from measurements:
//
//   - join: a server with Routes to managers already in the group joins by itself. At three: Scale(3), then EVACUATE the
//     witness, StopWitness, Remove it, wipe its store (StopWitness(true) wipes).
//   - leave: below three, first StartWitness on a survivor under a new name, then Evacuate the leaver, stop it, Remove
//     it; Scale(1) at the end. Witness in first, manager out after.
//   - lost for good: Remove it by name.

// Member is a server in the JetStream group.
type Member struct {
	Name    string
	Leader  bool
	Current bool // caught up and seen recently
	Offline bool
	Lag     uint64

	peer string // its id in the group
}

// nameOf is the name of a peer. The group knows one that was not heard of since its leader started by its id alone.
func nameOf(name, peer string, known []string) string {
	for _, k := range known {
		if peerID(k) == peer {
			return k
		}
	}
	return name
}

// peerID is the id nats-server gives a server of that name in its groups (getHash in its util.go); a test holds it to that.
func peerID(name string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(name))
	id := sum[:8]
	for i := range id {
		id[i] = digits[int(id[i])%len(digits)]
	}
	return string(id)
}

// Members lists the group as the meta leader, or this server if there is none, sees it.
func (b *Bus) Members() ([]Member, error) { return b.members(2 * time.Second) }

func (b *Bus) members(within time.Duration) ([]Member, error) {
	main := b.running()
	if main == nil {
		return nil, errStopped
	}
	// Only the leader knows who is current.
	var info *server.MetaClusterInfo
	sys := b.system()
	if sys != nil {
		msg, err := sys.Request("$SYS.REQ.SERVER.PING.JSZ", []byte(`{"leader_only":true}`), within)
		if err == nil {
			var reply struct {
				Data struct {
					Meta *server.MetaClusterInfo `json:"meta_cluster"`
				} `json:"data"`
			}
			if err := json.Unmarshal(msg.Data, &reply); err == nil {
				info = reply.Data.Meta
			}
		}
	}
	if info == nil {
		j, err := main.Jsz(&server.JSzOptions{})
		if err != nil {
			return nil, fmt.Errorf("list the managers: %w", err)
		}
		info = j.Meta
	}
	if info == nil {
		return nil, errors.New("list the managers: the store has not started yet; try again")
	}
	var out []Member
	if info.Leader != "" {
		out = append(out, Member{Name: info.Leader, Leader: true, Current: true, peer: info.Peer})
	}
	for _, p := range info.Replicas {
		if p.Name != info.Leader {
			out = append(out, Member{Name: p.Name, Current: p.Current, Offline: p.Offline, Lag: p.Lag, peer: p.Peer})
		}
	}
	return out, nil
}

// WaitMembers returns once the group consists of exactly these servers, has a leader and all are current.
func (b *Bus) WaitMembers(ctx context.Context, names ...string) error {
	want := slices.Sorted(slices.Values(names))
	var last []Member
	err := await(ctx, 50*time.Millisecond, 0, func() bool {
		m, err := b.Members()
		if err != nil {
			return false
		}
		last = m
		var have []string
		led := false
		for _, x := range m {
			if !x.Current || x.Offline {
				return false
			}
			led = led || x.Leader
			have = append(have, x.Name)
		}
		slices.Sort(have)
		return led && slices.Equal(have, want)
	})
	if err != nil {
		return fmt.Errorf("wait for the managers %v: %w; the group is %+v", want, err, last)
	}
	return nil
}

// StartWitness adds a witness beside this server. Its name must never have been removed from the group.
func (b *Bus) StartWitness(ctx context.Context, name string) error {
	b.memberM.Lock()
	defer b.memberM.Unlock()
	b.mu.Lock()
	running, have := b.main != nil, b.witness != nil
	b.mu.Unlock()
	switch {
	case !running:
		return errStopped
	case have:
		return errors.New("start the witness: there is one already")
	case name == "" || name == b.cfg.Name:
		return fmt.Errorf("start the witness: %q is not a name for it", name)
	}
	w, err := b.startWitnessServer(ctx, name)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.witness = w
	b.mu.Unlock()
	return nil
}

// StopWitness ends the witness beside this server; with wipe its store goes too (after Remove, or before a new name).
func (b *Bus) StopWitness(wipe bool) error {
	b.memberM.Lock()
	defer b.memberM.Unlock()
	b.mu.Lock()
	w := b.witness
	b.witness = nil
	b.mu.Unlock()
	w.stop(false)
	if !wipe {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(b.cfg.DataDir, "witness")); err != nil {
		return fmt.Errorf("wipe the witness store: %w", err)
	}
	return nil
}

// Evacuate moves leaderships and replicas off a server that is about to leave, and returns once no stream counts on it:
// stopped earlier, it would be missed by a quorum of two (measured: 24 s without writes).
func (b *Bus) Evacuate(ctx context.Context, name string) error {
	err := b.api(ctx, "evacuate "+name, server.JSApiEvacuateServer, server.JSApiMetaServerEvacuateRequest{Server: name, Peer: peerID(name)})
	if err != nil {
		return err
	}
	nc, err := b.connect(ctx, string(RoleManager))
	if err != nil {
		return fmt.Errorf("evacuate %s: %w", name, err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("evacuate %s: %w", name, err)
	}
	slow := newLaggards(name)
	look := func(s *jetstream.StreamInfo) { b.push(ctx, nc, slow, s) }
	err = await(ctx, 50*time.Millisecond, 0, func() bool {
		_, err := uses(ctx, js, name, look)
		return err == nil
	})
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stream, why := uses(ctx, js, name, func(*jetstream.StreamInfo) {})
		return fmt.Errorf("evacuate %s: %w; %w%s", name, err, why, moving(ctx, nc, stream))
	}
	return nil
}

// moving is what nats-server says that a stream waits for on its way to other servers, as the end of a sentence; "" when it
// says nothing.
func moving(ctx context.Context, nc *nats.Conn, stream string) string {
	if stream == "" {
		return ""
	}
	msg, err := nc.RequestWithContext(ctx, fmt.Sprintf(server.JSApiStreamInfoT, stream), nil)
	if err != nil {
		return ""
	}
	var reply server.JSApiStreamInfoResponse
	if err := json.Unmarshal(msg.Data, &reply); err != nil || reply.StreamInfo == nil || reply.Cluster == nil {
		return ""
	}
	d := reply.Cluster.Desired
	switch {
	case d == nil:
		return ": it is not on its way to other servers"
	case d.Status == nil:
		return ": it does not say what it waits for"
	case d.Status.Err != "":
		return ": " + d.Status.Description + ": " + d.Status.Err
	}
	return ": " + d.Status.Description
}

// uses reports the first stream that has a replica on the server, or nil when there is none. Every stream it comes by is
// shown to look.
func uses(ctx context.Context, js jetstream.JetStream, name string, look func(*jetstream.StreamInfo)) (stream string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	l := js.ListStreams(ctx)
	for s := range l.Info() {
		look(s)
		if s.Cluster == nil || s.Cluster.Leader == "" {
			return s.Config.Name, fmt.Errorf("stream %s has no leader", s.Config.Name)
		}
		on := s.Cluster.Leader == name
		for _, r := range s.Cluster.Replicas {
			// The leader tells the replicas that its group counts; one that is not current yet may be missed as well.
			on = on || r.Name == name || !r.Current
		}
		if on {
			return s.Config.Name, fmt.Errorf("stream %s still has a replica on it or is catching up", s.Config.Name)
		}
	}
	return "", l.Err()
}

// Remove takes a stopped or lost server out of the group for ever.
func (b *Bus) Remove(ctx context.Context, name string) error {
	return b.api(ctx, "remove "+name, server.JSApiRemoveServer, server.JSApiMetaServerRemoveRequest{Server: name, Peer: peerID(name)})
}

// Rescue lowers the quorum on this server after the others were lost for good. It may be refused for about 20 s after the
// loss, while a leader still counts as known.
func (b *Bus) Rescue(ctx context.Context, quorum int) error {
	return b.api(ctx, "rescue the group", server.JSApiMetaRescue, server.JSApiMetaRescueRequest{QuorumNeeded: quorum})
}

func (b *Bus) api(ctx context.Context, what, subj string, req any) error {
	b.memberM.Lock()
	defer b.memberM.Unlock()
	sys := b.system()
	if sys == nil {
		return errStopped
	}
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for {
		err := request(ctx, sys, subj, body)
		if err == nil {
			return nil
		}
		// During an election nobody answers; that ends by itself.
		if !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		b.log.Debug("no meta leader answers yet", zap.String("request", what), zap.Error(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func request(ctx context.Context, nc *nats.Conn, subj string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	msg, err := nc.RequestWithContext(ctx, subj, body)
	if err != nil {
		return err
	}
	var reply struct {
		Error *server.ApiError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if reply.Error != nil {
		return reply.Error
	}
	return nil
}

// Scale gives every stream the number of replicas and waits until all are current. Going down to one, the caller has
// evacuated the servers that leave: which replica stays cannot be chosen in the same update.
func (b *Bus) Scale(ctx context.Context, replicas int) error {
	nc, err := b.connect(ctx, string(RoleManager))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("scale the streams: %w", err)
	}
	var names []string
	err = again(ctx, func(ctx context.Context) error {
		names = nil
		l := js.StreamNames(ctx)
		for n := range l.Name() {
			names = append(names, n)
		}
		return l.Err()
	})
	if err != nil {
		return fmt.Errorf("scale the streams: list them: %w", err)
	}
	// All are told first: what is copied, is copied at the same time.
	for _, name := range names {
		if err := scale(ctx, js, name, replicas); err != nil {
			return fmt.Errorf("scale stream %s to %d replicas: %w", name, replicas, err)
		}
	}
	slow := newLaggards("")
	look := func(s *jetstream.StreamInfo) { b.push(ctx, nc, slow, s) }
	for _, name := range names {
		if err := await(ctx, 50*time.Millisecond, 0, func() bool { return scaled(ctx, js, name, replicas, look) }); err != nil {
			return fmt.Errorf("scale stream %s to %d replicas: %w", name, replicas, err)
		}
	}
	return nil
}

func scale(ctx context.Context, js jetstream.JetStream, name string, replicas int) error {
	return again(ctx, func(ctx context.Context) error {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return err
		}
		cfg := s.CachedInfo().Config
		if cfg.Replicas == replicas {
			return nil
		}
		cfg.Replicas = replicas
		_, err = js.UpdateStream(ctx, cfg)
		return err
	})
}

// scaled reports whether a stream has a leader and that number of replicas, all current. It is shown to look.
func scaled(ctx context.Context, js jetstream.JetStream, name string, replicas int, look func(*jetstream.StreamInfo)) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, name)
	if err != nil {
		return false
	}
	look(s.CachedInfo())
	c := s.CachedInfo().Cluster
	if c == nil || c.Leader == "" || len(c.Replicas) != replicas-1 {
		return false
	}
	for _, r := range c.Replicas {
		if !r.Current || r.Offline {
			return false
		}
	}
	return true
}

// again repeats a request to the JetStream API until it succeeds or ctx ends; each attempt is bounded, because requests
// during an election get no answer. Errors that no repetition mends end it.
func again(ctx context.Context, f func(context.Context) error) error {
	for {
		qctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := f(qctx)
		cancel()
		var api *jetstream.APIError
		if err == nil || errors.As(err, &api) && api.Code < 500 && api.Code != 400 {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (b *Bus) running() *instance {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.main
}

func (b *Bus) system() *nats.Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sys
}

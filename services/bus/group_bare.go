package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	skepv1 "skep.dev/proto/skep/v1"
)

// A witness (Config.Bare; to users `skep join --witness`) is a voter of the group without a manager's services. It keeps a
// copy of the store, since nats-server knows no voter of a stream that keeps none. It is not to lead: a write that a leader
// elsewhere takes passes through that machine, which may be small and far, and when the streams go down to one copy it is
// the leader's that stays.

// actHandOver has a witness give up what it leads. It changes nothing of the group, so it is not written down.
const actHandOver = "hand-over"

// ElectLast has the servers of this process stand for election after those of other processes have: for a witness. Call it
// before any server starts. It leads only what nobody else may, such as a stream of which it alone has the last write; the
// leader of the group then has it hand over.
func ElectLast() {
	minElectionTimeout, maxElectionTimeout = electBefore, electBefore+electAfter/2
}

// handOver plans that a witness gives up what it leads, where a manager that is there can lead instead.
func (v *view) handOver() (plan, bool) {
	for _, m := range v.voters() {
		if m.GetBare() && (v.leads(m.GetServer()) || len(v.heirs(m.GetServer())) > 0) {
			return plan{do: actHandOver, node: m.GetNodeId(), server: m.GetServer()}, true
		}
	}
	return plan{}, false
}

// leads reports whether a server leads the group, and a manager could instead.
func (v *view) leads(server string) bool {
	in := v.member(server)
	return in != nil && in.Leader && v.heir(nil) != ""
}

// heirs are the streams that a server leads and a manager could lead instead: by stream that manager's server.
func (v *view) heirs(server string) map[string]string {
	out := map[string]string{}
	if v.streams == nil || v.set.GetReplicas() < 2 {
		return out
	}
	for _, s := range v.streams.led[server] {
		if to := v.heir(func(m string) bool { return slices.Contains(v.streams.on[m], s) }); to != "" {
			out[s] = to
		}
	}
	return out
}

// heir is the server of a manager that is there and may lead: this one's if it may. nil asks nothing more of it.
func (v *view) heir(may func(server string) bool) (heir string) {
	for _, m := range v.full() {
		if s := m.GetServer(); v.there(s) && (may == nil || may(s)) && (heir == "" || s == v.me) {
			heir = s
		}
	}
	return heir
}

// handOver has the groups that a witness leads elect a manager's server.
func (l *leader) handOver(ctx context.Context, p plan, set *skepv1.ManagerSet) error {
	v := l.look(ctx, set)
	var errs []error
	if v.leads(p.server) {
		to := server.JSApiLeaderStepdownRequest{Placement: &server.Placement{Preferred: v.heir(nil)}}
		errs = append(errs, l.g.b.api(ctx, "move the lead of the group off "+p.server, server.JSApiLeaderStepDown, to))
	}
	for s, to := range v.heirs(p.server) {
		body, err := json.Marshal(server.JSApiLeaderStepdownRequest{Placement: &server.Placement{Preferred: to}})
		if err == nil {
			err = request(ctx, l.nc, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, s), body)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("move the lead of stream %s off it: %w", s, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.g.log.Info("a witness gave up what it led", nodeField(p.node), serverField(p.server))
	// A group takes a moment to have its new leader; asked at once it would be told again.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(handOverPause):
		return nil
	}
}

// handOverPause is how long a group may take to have another leader: it is told whom.
const handOverPause = time.Second

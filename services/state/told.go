package state

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/printable"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// told notes what a person asked of a node. Who it was is the node's word, which heard it proven: a dishonest node can tell
// of itself what did not happen, and nothing of another's.
func (s *Service) told(ctx context.Context, node string, r *skepv1.ToldRequest) (*skepv1.Empty, error) {
	if err := s.ownNode(ctx, node, ""); err != nil {
		return nil, err
	}
	if who := (rpc.Actor{Name: r.Actor}); !who.Person() || len(r.Actor) > nameMost || strings.Trim(r.Actor, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return nil, fault.Invalid("node %s tells of %q: that is no person", node, printable.Cut(r.Actor, nameMost))
	}
	if a, err := netip.ParseAddr(r.Address); r.Address != subject.Local && (err != nil || a.Zone() != "") {
		return nil, fault.Invalid("node %s tells of %s: it gives no address", node, r.Actor)
	}
	host := s.ix.Hostname(node)
	e := &skepv1.Event{Kind: "node", Id: node, Name: host, Verb: r.Verb, Actor: r.Actor, Address: r.Address,
		Attributes: map[string]string{"name": host, "image": printable.Cut(r.Subject, eventText)}}
	switch r.Verb {
	case "image-pull", "image-remove", "image-load":
	case "volume-create", "volume-update", "volume-remove", "volume-prune":
		e.Attributes = map[string]string{"name": host, "volume": e.Attributes["image"]}
	case "upgrade", "upgrade-undone":
		e.Attributes = map[string]string{"name": host, "version": e.Attributes["image"]}
	case "exec":
		records, _, _ := s.ix.Tasks(node)
		e = nil
		for _, rec := range records {
			if rec.Id == r.TaskId {
				e = s.taskEvent(node, host, rec, &skepv1.TaskStatus{TaskId: rec.Id})
				e.Verb, e.Actor, e.Address = r.Verb, r.Actor, r.Address
				e.Attributes["name"], e.Attributes["command"] = e.Name, printable.Cut(r.Subject, eventText)
			}
		}
		if e == nil {
			return nil, fault.NotFound("node %s tells of task %s: it has no such task", node, printable.Cut(r.TaskId, nameMost))
		}
	default:
		return nil, fault.Invalid("node %s tells of %q: there is no such thing", node, printable.Cut(r.Verb, nameMost))
	}
	if !s.events.told.Allow(node, time.Now()) {
		return nil, fault.Exhausted("node %s tells of more than %d requests a second; its own log has them all", node, toldPerSec)
	}
	s.events.send(ctx, e)
	return &skepv1.Empty{}, nil
}

// nameMost is the longest name a node may give a person, bytes.
const nameMost = 80

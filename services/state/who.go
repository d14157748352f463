package state

import (
	"context"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// listAudit reads the events that people caused, oldest first: those kept that name a person as the one who did it.
func (s *Service) listAudit(ctx context.Context, r *skepv1.ListAuditRequest) (*skepv1.ListEventsReply, error) {
	if r.Kind != "" && !token(r.Kind) {
		return nil, fault.Usage("invalid kind %q: use service, stack, network, node, cluster, secret, config, user, task or image", r.Kind)
	}
	user := strings.ToLower(r.User)
	if user != "" && user != rpc.Root && !subject.IsPerson(user) {
		user = subject.Person(user)
	}
	list := &skepv1.ListEventsRequest{Since: r.Since, Until: r.Until, Page: r.Page}
	return s.readEvents(ctx, list, r.Kind, func(e *skepv1.Event) bool {
		return rpc.Actor{Name: e.Actor}.Person() && (r.Kind == "" || e.Kind == r.Kind) && (user == "" || e.Actor == user)
	})
}

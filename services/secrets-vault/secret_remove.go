package vault

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
)

// A removal and a service that is being made do not see each other: the vault keeps objects, state keeps services, and
// neither waits for the other. So what is removed is out of every list at once, and kept for a while longer than a request
// may take. Whoever came to refer to it meanwhile gets it back.
const keptRemoved = 90 * time.Second

// remove removes an object that nothing refers to.
func (k kind) remove(ctx context.Context, r *skepv1.RemoveSecretRequest) (*skepv1.RemoveSecretReply, error) {
	return k.take(ctx, r.Ref, r.Force)
}

// dropFile removes what a stack had made, for whoever asked for the stack's removal. What others refer to is refused, as ever.
func (s *Service) dropFile(ctx context.Context, r *skepv1.DropFileRequest) (*skepv1.RemoveSecretReply, error) {
	if r.Kind != skepv1.SecretKind_SECRET_KIND_SECRET && r.Kind != skepv1.SecretKind_SECRET_KIND_CONFIG || r.Id == "" {
		return nil, fault.Invalid("drop a file of a stack: it is a secret or config, by its id")
	}
	ctx = rpc.WithActor(ctx, rpc.Actor{Name: r.Author, Address: r.AuthorAddress})
	return kind{s, r.Kind}.take(ctx, r.Id, false)
}

func (k kind) take(ctx context.Context, ref string, force bool) (*skepv1.RemoveSecretReply, error) {
	o, err := k.lookup(ctx, ref)
	if rpc.Removed(ctx, ref, err) {
		return k.gone(ref), nil
	}
	if err != nil {
		return nil, err
	}
	all, err := k.uses(ctx, false, o.id())
	if err != nil {
		return nil, err
	}
	uses, left := all[o.id()].GetUses(), all[o.id()].GetLeft()
	if err := inUse(o, uses, force); err != nil {
		return nil, err
	}
	done, err := k.change(ctx, o.id(), func(cur *object) (*skepv1.SecretRecord, error) {
		if cur == nil || cur.RemovedAt != nil {
			return nil, fault.NotFound("%s not found: %s", k.word(), printable(ref))
		}
		next := proto.CloneOf(cur.SecretRecord)
		next.RemovedAt, next.RemovedBy, next.RemovedByForce, next.Rolling = timestamppb.New(k.cfg.Now()), rpc.Asker(ctx), force, 0
		return next, nil
	})
	if rpc.Removed(ctx, ref, err) {
		return k.gone(ref), nil
	}
	if err != nil {
		return nil, err
	}
	var attr map[string]string
	if len(left) > 0 { // the file goes when the task goes; until its node is heard of, nobody can say that it has
		attr = map[string]string{"not.taken.back": holders(left)}
	}
	k.said(ctx, done, "remove", 0, attr)
	return &skepv1.RemoveSecretReply{Secret: done.view(), Lost: uses, Left: left}, nil
}

// holders names tasks and their nodes, ten of many.
func holders(list []*skepv1.SecretHolder) string {
	var out []string
	for _, h := range list {
		out = append(out, h.TaskName+" on "+h.NodeHostname)
	}
	return short10(out)
}

// inUse refuses the removal of what services use, or, without force, could go back to.
func inUse(o *object, uses []*skepv1.SecretUse, force bool) error {
	var now, back []string
	for _, u := range uses {
		if u.Version != 0 {
			now = append(now, u.ServiceName)
		} else {
			back = append(back, fmt.Sprintf("%s (%s)", u.ServiceName, revisionsOf(u)))
		}
	}
	if len(now) > 0 {
		slices.Sort(now)
		noun := "service"
		if len(now) > 1 {
			noun = "services"
		}
		return fault.Invalid("%s '%s' is in use by the following %s: %s", o.word(), o.name(), noun, strings.Join(now, ", "))
	}
	if len(back) > 0 && !force {
		return fault.Invalid("%s '%s' is needed to roll back %s: remove it with --force, and those revisions cannot be gone back to", o.word(), o.name(), strings.Join(back, ", "))
	}
	return nil
}

func revisionsOf(u *skepv1.SecretUse) string {
	const most = 5
	word := "revision"
	if len(u.Revisions) > 1 {
		word = "revisions"
	}
	var out []string
	for i, n := range u.Revisions {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(u.Revisions)-most))
			break
		}
		out = append(out, fmt.Sprint(n))
	}
	return word + " " + strings.Join(out, ", ")
}

// settleRemoved ends what was removed long enough ago, or gives it back to who refers to it all the same.
func (s *Service) settleRemoved(ctx context.Context) {
	s.idx.mu.Lock()
	var due []*object
	for _, o := range s.idx.objects.byID {
		if at := o.RemovedAt; at != nil && s.cfg.Now().Sub(at.AsTime()) > keptRemoved && s.idx.objects.genuine(o) {
			due = append(due, o)
		}
	}
	s.idx.mu.Unlock()
	for _, o := range due {
		all, err := s.uses(ctx, true, o.id())
		if err == nil {
			if uses := all[o.id()].GetUses(); inUse(o, uses, o.RemovedByForce) != nil {
				err = s.restore(ctx, o, uses)
			} else {
				err = s.forget(ctx, o)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("a removed object is still kept; trying again", zap.String("id", o.id()), zap.String("name", o.name()), zap.Error(err))
		}
	}
}

// forget removes an object for good, then its values.
func (s *Service) forget(ctx context.Context, o *object) error {
	_, err := s.change(ctx, o.id(), func(cur *object) (*skepv1.SecretRecord, error) {
		if cur == nil || cur.RemovedAt == nil {
			return nil, errSeenTo
		}
		return nil, nil
	})
	if err == errSeenTo {
		return nil
	}
	if err != nil {
		return err
	}
	for _, place := range o.Values {
		s.dropValue(ctx, place)
	}
	return nil
}

// restore takes a removal back.
func (s *Service) restore(ctx context.Context, o *object, uses []*skepv1.SecretUse) error {
	k := kind{s, o.Secret.Kind}
	done, err := s.change(ctx, o.id(), func(cur *object) (*skepv1.SecretRecord, error) {
		if cur == nil || cur.RemovedAt == nil {
			return nil, errSeenTo
		}
		next := proto.CloneOf(cur.SecretRecord)
		next.RemovedAt, next.RemovedBy, next.RemovedByForce = nil, "", false
		if k.free(cur.id(), cur.name()) != nil { // there is a new one of that name
			next.Secret.Spec.Name = cur.name()[:min(len(cur.name()), 50)] + "-" + cur.id()[:8]
		}
		return next, nil
	})
	if err == errSeenTo {
		return nil
	}
	if err != nil {
		return err
	}
	var services []string
	for _, u := range uses {
		services = append(services, u.ServiceName)
	}
	s.publish(ctx, &skepv1.Event{Kind: done.word(), Id: done.id(), Name: done.name(), Verb: "restore", Attributes: map[string]string{"name": done.name(), "services": strings.Join(services, ", ")},
		Message: fmt.Sprintf("it was removed as %s while a service that refers to it was being made", o.name())})
	return nil
}

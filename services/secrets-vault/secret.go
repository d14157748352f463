package vault

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/event"
	"skep.dev/libs/fault"
	"skep.dev/libs/kv"
	"skep.dev/libs/rpc"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
)

// kind is one of the three kinds of objects, with what people ask for it.
type kind struct {
	*Service
	skepv1.SecretKind
}

// sealedSlack is what sealing adds to a value, with room.
const sealedSlack = 1 << 10

// openSealed opens a client's value and checks its size. The size is looked at first: what is too long costs nothing more.
func (k kind) openSealed(sealed []byte, name string, version uint64) ([]byte, error) {
	if len(sealed) > spec.SecretLimit(k.SecretKind)+sealedSlack {
		return nil, spec.CheckSecretSize(k.SecretKind, len(sealed))
	}
	value, err := k.idx.curveKey().FromClient(sealed, k.SecretKind, name, version)
	if err != nil {
		return nil, fault.Invalid("%s %s: %v", k.word(), name, err)
	}
	return value, spec.CheckSecretSize(k.SecretKind, len(value))
}

func (k kind) word() string { return spec.KindWord(k.SecretKind) }

// create stores a new object with its first version.
func (k kind) create(ctx context.Context, r *skepv1.CreateSecretRequest) (*skepv1.SecretReply, error) {
	if err := spec.CheckSecret(k.SecretKind, r.Spec); err != nil {
		return nil, err
	}
	o := rpc.MarkOf(ctx).NewID()
	if made, err := k.made(ctx, o); made != nil || err != nil {
		return made, err
	}
	value, err := k.openSealed(r.Sealed, r.Spec.Name, 1)
	if err != nil {
		return nil, err
	}
	defer seal.Wipe(value)
	if err := checkTemplate(k.SecretKind, r.Spec, value); err != nil {
		return nil, err
	}
	return k.store(ctx, o, r.Spec, value)
}

// store stores a new object that has passed every check but whether there is room for it and its name.
func (k kind) store(ctx context.Context, o string, sp *skepv1.SecretSpec, value []byte) (*skepv1.SecretReply, error) {
	err := k.free(o, sp.Name)
	if fault.Is(err, fault.CodeConflict) && k.feed.Current(ctx) == nil {
		err = k.free(o, sp.Name) // what has the name may have been removed a moment ago by another instance
	}
	if err != nil {
		return nil, err // before anything is written for it
	}
	place := newPlace(o)
	if err := k.putValue(ctx, place, value); err != nil {
		return nil, fault.Unavailable("store %s %s: %v", k.word(), sp.Name, err)
	}
	now := timestamppb.New(k.cfg.Now())
	version := &skepv1.SecretVersion{Number: 1, CreatedAt: now, Author: rpc.Asker(ctx), AuthorAddress: rpc.AskerAddress(ctx), Size: uint64(len(value))}
	done, err := k.change(ctx, o, func(cur *object) (*skepv1.SecretRecord, error) {
		switch {
		case cur != nil && rpc.MarkOf(ctx) != nil:
			return nil, errDone
		case cur != nil:
			return nil, fault.Conflict("%s %s already exists", k.word(), sp.Name)
		}
		if err := k.free(o, sp.Name); err != nil {
			return nil, err
		}
		return &skepv1.SecretRecord{
			Secret: &skepv1.Secret{
				Meta: &skepv1.Meta{Id: o, CreatedAt: now, UpdatedAt: now}, Kind: k.SecretKind, Spec: sp, Versions: []*skepv1.SecretVersion{version},
			},
			Values: map[uint64]string{1: place},
		}, nil
	})
	if err != nil {
		if !fault.Is(err, fault.CodeUnavailable) { // then it may have been stored all the same
			k.dropValue(ctx, place)
		}
		if errors.Is(err, errDone) {
			return k.made(ctx, o)
		}
		return nil, err
	}
	k.said(ctx, done, "create", 1, nil)
	return &skepv1.SecretReply{Secret: done.view()}, nil
}

// free refuses a name that another object has, and one object too many.
func (k kind) free(self, name string) error {
	k.idx.mu.Lock()
	defer k.idx.mu.Unlock()
	x := &k.idx.objects
	if o := x.byID[x.byName[nameOf(&skepv1.Secret{Kind: k.SecretKind, Spec: &skepv1.SecretSpec{Name: name}})]]; o != nil && o.id() != self {
		return fault.Conflict("%s %s already exists", k.word(), o.name())
	}
	if len(x.byID) >= maxObjects && x.byID[self] == nil {
		return fault.Exhausted("%s %s: the vault keeps %d objects, the most there may be; remove what nobody uses: skep doctor names it", k.word(), name, len(x.byID))
	}
	return nil
}

// update gives an object a new version, or other labels.
func (k kind) update(ctx context.Context, r *skepv1.UpdateSecretRequest) (*skepv1.SecretReply, error) {
	if len(r.Sealed) > 0 && r.RollbackTo != 0 {
		return nil, fault.Invalid("update %s %s: a new value and a rollback conflict", k.word(), printable(r.Ref))
	}
	cur, err := k.lookup(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	if rpc.MarkOf(ctx).In(cur.Asked) {
		return k.changed(ctx, cur, r)
	}
	if r.Version != 0 && r.Version != cur.revision {
		return nil, errOutOfSequence(cur)
	}
	next := cur.current() + 1
	var value []byte
	var place string
	if len(r.Sealed) > 0 {
		if value, err = k.openSealed(r.Sealed, cur.name(), next); err != nil {
			return nil, err
		}
		defer seal.Wipe(value)
		if err := checkTemplate(k.SecretKind, cur.Secret.Spec, value); err != nil {
			return nil, err
		}
		same := false
		if r.IfChanged {
			if same, err = k.is(ctx, cur, value); err != nil {
				return nil, err
			}
		}
		if same && !relabels(cur.Secret.Spec.Labels, r) {
			return &skepv1.SecretReply{Secret: cur.view(), Unchanged: true}, nil
		}
		if !same {
			place = newPlace(cur.id())
		}
	}
	if r.DryRun {
		return k.wouldBe(ctx, cur, r, place, uint64(len(value)))
	}
	if place != "" {
		if err := k.putValue(ctx, place, value); err != nil {
			return nil, fault.Unavailable("store version %d of %s %s: %v", next, k.word(), cur.name(), err)
		}
	}
	done, err := k.change(ctx, cur.id(), func(o *object) (*skepv1.SecretRecord, error) {
		if o == nil || o.RemovedAt != nil {
			return nil, fault.NotFound("%s not found: %s", k.word(), printable(r.Ref))
		}
		if rpc.MarkOf(ctx).In(o.Asked) {
			return nil, errDone
		}
		if o.current()+1 != next && (place != "" || r.RollbackTo != 0) || r.Version != 0 && r.Version != o.revision {
			return nil, errOutOfSequence(o)
		}
		return k.updated(ctx, o, r, place, uint64(len(value)))
	})
	if err != nil {
		if place != "" && !fault.Is(err, fault.CodeUnavailable) {
			k.dropValue(ctx, place)
		}
		if errors.Is(err, errDone) {
			if cur, err = k.lookup(ctx, cur.id()); err != nil {
				return nil, err
			}
			return k.changed(ctx, cur, r)
		}
		return nil, err
	}
	reply := &skepv1.SecretReply{Secret: done.view()}
	if done.current() != next {
		k.said(ctx, done, "update", 0, nil)
		return reply, nil
	}
	attr := map[string]string{}
	if r.RollbackTo != 0 {
		attr["rollback.to"] = strconv.FormatUint(r.RollbackTo, 10)
	}
	k.said(ctx, done, "update", next, attr)
	if r.Hold {
		return reply, nil
	}
	reply.Rolled, err = k.roll(ctx, done)
	if err != nil {
		// The version is there; the loop goes on with the services that use it.
		reply.Warnings = append(reply.Warnings, fmt.Sprintf("version %d is stored, the services that use it are not changed yet: %v; the vault goes on with it", next, err))
	}
	return reply, nil
}

// is reports whether a value is that of the current version, in a time that does not depend on where they differ. What is not
// in the store any more is another.
func (k kind) is(ctx context.Context, o *object, value []byte) (bool, error) {
	now, err := k.value(ctx, o, o.current())
	if err != nil {
		if fault.Is(err, fault.CodeUnavailable) {
			return false, err
		}
		return false, nil
	}
	defer seal.Wipe(now)
	return subtle.ConstantTimeCompare(now, value) == 1, nil
}

// relabels reports whether an update changes labels.
func relabels(now map[string]string, r *skepv1.UpdateSecretRequest) bool {
	for k, v := range r.LabelAdd {
		if was, ok := now[k]; !ok || was != v {
			return true
		}
	}
	return len(r.LabelRm) > 0
}

// wouldBe is what an update would come to. Nothing is stored.
func (k kind) wouldBe(ctx context.Context, o *object, r *skepv1.UpdateSecretRequest, place string, size uint64) (*skepv1.SecretReply, error) {
	next, err := k.updated(ctx, o, r, place, size)
	if err != nil {
		return nil, err
	}
	return &skepv1.SecretReply{Secret: (&object{SecretRecord: next, revision: o.revision}).view()}, nil
}

func errOutOfSequence(o *object) error {
	return fault.New(fault.CodeSequence, "update out of sequence: %s %s has version %d by now; look, then try again", o.word(), o.name(), o.current())
}

// updated is the record after an update.
func (k kind) updated(ctx context.Context, o *object, r *skepv1.UpdateSecretRequest, place string, size uint64) (*skepv1.SecretRecord, error) {
	n := proto.CloneOf(o.SecretRecord)
	n.Asked = rpc.MarkOf(ctx).Onto(n.Asked)
	s, now := n.Secret, timestamppb.New(k.cfg.Now())
	s.Meta.UpdatedAt = now
	for _, l := range r.LabelRm {
		if _, ok := s.Spec.Labels[l]; !ok {
			return nil, fault.Invalid("key %s doesn't exist in the labels of %s %s", printable(l), k.word(), o.name())
		}
		delete(s.Spec.Labels, l)
	}
	if len(r.LabelAdd) > 0 {
		if s.Spec.Labels == nil {
			s.Spec.Labels = map[string]string{}
		}
		maps.Copy(s.Spec.Labels, r.LabelAdd)
	}
	if err := spec.CheckSecretLabels(k.SecretKind, s.Spec); err != nil {
		return nil, err
	}
	v := &skepv1.SecretVersion{Number: o.current() + 1, CreatedAt: now, Author: rpc.Asker(ctx), AuthorAddress: rpc.AskerAddress(ctx), Size: size}
	switch {
	case r.RollbackTo != 0:
		old := o.offered(r.RollbackTo)
		switch {
		case old == nil:
			return nil, fault.NotFound("%s %s has no version %d: skep %s history %s lists them", k.word(), o.name(), r.RollbackTo, k.word(), o.name())
		case old.Number == o.current():
			return nil, fault.Invalid("%s %s is at version %d already", k.word(), o.name(), old.Number)
		}
		v.Size, v.RollbackTo, place = old.Size, old.Number, o.Values[old.Number]
	case place == "":
		return n, nil
	}
	if len(s.Versions) >= maxVersions {
		return nil, fault.Exhausted("%s %s has %d versions that services may go back to, the most there may be", k.word(), o.name(), len(s.Versions))
	}
	s.Versions = append(s.Versions, v)
	n.Values[v.Number] = place
	if !r.Hold {
		n.Rolling = v.Number
	}
	return n, nil
}

// maxVersions bounds what is kept of one object. The sweep drops those that nothing needs beyond keptVersions.
const maxVersions = 200

// lookup finds an object for a change or an answer, in a picture that is not older than the question.
func (k kind) lookup(ctx context.Context, ref string) (*object, error) {
	if err := k.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("look for %s %s: %v", k.word(), printable(ref), err)
	}
	k.whole(ctx)
	defer k.idx.mu.Unlock()
	o, err := k.idx.objects.find(k.SecretKind, ref)
	if err != nil {
		return nil, err
	}
	if !k.idx.objects.genuine(o) {
		return nil, fault.Denied("%v", errAltered(o))
	}
	return o, nil
}

// change changes one object: f makes its next record of what is there now (nil: nothing), nil to remove it. f is called
// again when somebody else was faster. An error of f is returned as it is.
func (s *Service) change(ctx context.Context, object string, f func(*object) (*skepv1.SecretRecord, error)) (*object, error) {
	for {
		b := s.bucket.Batch()
		s.whole(ctx)
		cur := s.idx.objects.byID[object]
		var err error
		if cur != nil && !s.idx.objects.genuine(cur) {
			err = fault.Denied("%v", errAltered(cur))
		}
		s.idx.mu.Unlock()
		if err != nil {
			return nil, err
		}
		next, err := f(cur)
		if err != nil {
			return nil, err
		}
		s.idx.mu.Lock()
		if s.idx.objects.byID[object] != cur {
			err = kv.ErrConflict
		} else {
			err = s.idx.objects.change(b, s.idx.seal, object, next)
		}
		s.idx.mu.Unlock()
		var rev uint64
		if err == nil {
			rev, err = b.Commit(ctx)
		}
		switch {
		case err == nil:
			if err := s.feed.Wait(ctx, rev); err != nil {
				return nil, fault.Unavailable("the change is stored, but this manager does not see it yet: %v", err)
			}
			s.idx.mu.Lock()
			o := s.idx.objects.byID[object]
			s.idx.mu.Unlock()
			return o, nil
		case errors.Is(err, kv.ErrConflict) && ctx.Err() == nil:
			if err := s.feed.Current(ctx); err != nil {
				return nil, fault.Unavailable("store the change: %v", err)
			}
		default:
			var f *fault.Error
			if errors.As(err, &f) {
				return nil, err
			}
			return nil, fault.Unavailable("the change could not be stored, or its acknowledgement was lost: look, then try again (%v)", err)
		}
	}
}

// said publishes an event of an object.
func (s *Service) said(ctx context.Context, o *object, verb string, version uint64, attr map[string]string) {
	if attr == nil {
		attr = map[string]string{}
	}
	attr["name"] = o.name()
	if version != 0 {
		attr["version"] = strconv.FormatUint(version, 10)
	}
	who := rpc.ActorOf(ctx)
	s.log.Info(o.word()+" "+verb, zap.String("id", o.id()), zap.String("name", o.name()), zap.Uint64("version", version), zap.String("by", who.Name), zap.String("from", who.Address))
	s.publish(ctx, &skepv1.Event{Kind: o.word(), Id: o.id(), Name: o.name(), Verb: verb, Attributes: attr, Time: timestamppb.New(time.Now())})
}

// publish tells of what was asked for under ctx.
func (s *Service) publish(ctx context.Context, e *skepv1.Event) {
	if err := event.Publish(s.cfg.NC, event.By(ctx, e)); err != nil {
		s.log.Warn("event not published", zap.Error(err))
	}
}

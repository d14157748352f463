package state

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// Services refer to secrets, configs and the credentials of their image's registry, which the vault keeps. State turns names into ids and versions with its help when
// a service is stored, and tells the vault who refers to what: so that nothing in use is removed, a node gets what its own
// tasks refer to, and a new version comes to those who use it.

// resolveFiles fills in ids, names and versions of a spec's secrets and configs. Everything must be there.
func (s *Service) resolveFiles(ctx context.Context, want *skepv1.ServiceSpec) error {
	c := want.GetTask().GetContainer()
	if len(c.GetSecrets())+len(c.GetConfigs()) == 0 && c.GetRegistryAuth() == "" {
		return nil
	}
	r, err := api.Call(ctx, s.cfg.NC, api.FilesResolve, &skepv1.ResolveFilesRequest{Secrets: c.Secrets, Configs: c.Configs, RegistryAuth: c.RegistryAuth})
	if err != nil {
		return err
	}
	c.Secrets, c.Configs = r.Secrets, r.Configs
	return nil
}

// filesOf finds a spec's references to an object: it may stand in several places.
func filesOf(s *skepv1.ServiceSpec, object string) (out []*skepv1.FileReference) {
	c := s.GetTask().GetContainer()
	if object != "" && c.GetRegistryAuth() == object {
		return []*skepv1.FileReference{{Id: object, Version: 1}}
	}
	for _, list := range [][]*skepv1.FileReference{c.GetSecrets(), c.GetConfigs()} {
		for _, f := range list {
			if f.Id == object {
				out = append(out, f)
			}
		}
	}
	return out
}

// secretUses tells who refers to objects, kept revisions and running tasks included.
func (s *Service) secretUses(ctx context.Context, r *skepv1.SecretUsesRequest) (*skepv1.SecretUsesReply, error) {
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev, subject.Task, subject.Status} {
		if err := s.feeds.Of(b).Current(ctx); err != nil {
			return nil, fault.Unavailable("look who uses a secret: %v", err)
		}
	}
	out := &skepv1.SecretUsesReply{Uses: map[string]*skepv1.SecretUses{}}
	for _, object := range r.Ids {
		if object == "" {
			continue
		}
		uses := &skepv1.SecretUses{}
		for _, id := range s.ix.Referring(object) {
			if u := s.secretUse(id, object, r.Brief); u != nil {
				uses.Uses = append(uses.Uses, u)
			}
		}
		slices.SortFunc(uses.Uses, func(a, b *skepv1.SecretUse) int { return cmp.Compare(a.ServiceName, b.ServiceName) })
		if !r.Brief {
			uses.Left = s.unreferred(object, uses.Uses)
		}
		out.Uses[object] = uses
	}
	return out, nil
}

// maxHolders bounds what one answer names of a service's tasks.
const maxHolders = 500

// secretUse is how one service refers to an object, nil if it does not; brief: without the tasks that have it.
func (s *Service) secretUse(id, object string, brief bool) *skepv1.SecretUse {
	svc := s.ix.Service(id)
	if svc == nil {
		return nil
	}
	u := &skepv1.SecretUse{ServiceId: id, ServiceName: svc.Spec.Name}
	note := func(f *skepv1.FileReference) {
		if !slices.Contains(u.Versions, f.Version) {
			u.Versions = append(u.Versions, f.Version)
		}
	}
	for i, f := range filesOf(svc.Spec, object) {
		note(f)
		// In several places: the version that newer ones take the place of.
		if i == 0 || u.Pinned && !f.Pinned {
			u.Version, u.Pinned = f.Version, f.Pinned
		}
	}
	for _, r := range s.ix.RevisionsReferring(id, object) {
		list := filesOf(r.Spec, object)
		for _, f := range list {
			note(f)
		}
		if len(list) > 0 && r.Number < svc.Revision {
			u.Revisions = append(u.Revisions, r.Number)
		}
	}
	if len(u.Versions) == 0 {
		return nil
	}
	if brief {
		return u
	}
	c := s.composer()
	for _, g := range s.ix.Groups(id) {
		if strings.HasPrefix(g, index.Unplaced) {
			continue
		}
		records, status, gen := s.ix.Tasks(g)
		for _, rec := range records {
			version := holds(status[rec.Id], object)
			if rec.ServiceId != id || version == 0 || len(u.Holders) == maxHolders {
				continue
			}
			t := c.task(g, rec, status[rec.Id], gen)
			u.Holders = append(u.Holders, &skepv1.SecretHolder{TaskId: rec.Id, TaskName: t.Name, NodeId: g, NodeHostname: t.NodeHostname, Version: version})
		}
	}
	return u
}

// unreferred are the tasks that have an object, as their nodes said last, of services that do not refer to it or are no more.
func (s *Service) unreferred(object string, uses []*skepv1.SecretUse) (out []*skepv1.SecretHolder) {
	c := s.composer()
	for _, node := range s.ix.NodeIDs() {
		records, status, gen := s.ix.Tasks(node)
		for id, st := range status {
			version := holds(st, object)
			if version == 0 || len(out) == maxHolders {
				continue
			}
			h := &skepv1.SecretHolder{TaskId: id, TaskName: id, NodeId: node, NodeHostname: s.ix.Hostname(node), Version: version}
			if i := slices.IndexFunc(records, func(r *skepv1.TaskRecord) bool { return r.Id == id }); i >= 0 {
				if slices.ContainsFunc(uses, func(u *skepv1.SecretUse) bool { return u.ServiceId == records[i].ServiceId }) {
					continue
				}
				h.TaskName = c.task(node, records[i], st, gen).Name
			}
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b *skepv1.SecretHolder) int {
		return cmp.Or(cmp.Compare(a.TaskName, b.TaskName), cmp.Compare(a.TaskId, b.TaskId))
	})
	return out
}

// holds is the version of an object that a task has in its memory now, 0 = none.
func holds(st *skepv1.TaskStatus, object string) uint64 {
	if st.GetState() > skepv1.TaskState_TASK_STATE_RUNNING {
		return 0
	}
	for _, h := range st.GetFiles() {
		if h.Id == object {
			return h.Version
		}
	}
	return 0
}

// taskFiles tells what tasks of a node refer to. It is not older than the task set the node acts on.
func (s *Service) taskFiles(ctx context.Context, r *skepv1.TaskFilesRequest) (*skepv1.TaskFilesReply, error) {
	now, cancel := context.WithTimeout(ctx, currentWithin)
	defer cancel()
	// A number that was made up is waited for no longer than the newest there is.
	if f := s.feeds.Of(subject.Task); f.Revision() < r.Generation {
		if err := f.Current(now); err != nil {
			return nil, fault.Unavailable("this manager may not know the newest tasks of node %s: try again (%v)", r.NodeId, err)
		}
	}
	out := &skepv1.TaskFilesReply{}
	records, _, _ := s.ix.Tasks(r.NodeId)
	c := s.composer()
	for _, rec := range records {
		if rec.Desired > skepv1.TaskState_TASK_STATE_COMPLETE || !slices.Contains(r.TaskIds, rec.Id) {
			continue
		}
		rev := c.revision(rec.ServiceId, rec.Revision)
		if rev == nil {
			continue
		}
		sp := rev.Spec
		// Newer versions that come to running tasks are those of the newest revision, where it asks for the same task.
		if svc := s.ix.Service(rec.ServiceId); svc != nil && svc.Revision != rec.Revision && sameCore(sp, svc.Spec) {
			sp = svc.Spec
		}
		ct := sp.GetTask().GetContainer()
		out.Tasks = append(out.Tasks, &skepv1.TaskFiles{TaskId: rec.Id, ServiceName: sp.GetName(), Secrets: ct.GetSecrets(), Configs: ct.GetConfigs(), RegistryAuth: registryAuth(rev.Spec, s.ix.Service(rec.ServiceId).GetSpec())})
	}
	return out, nil
}

// registryAuth is what tasks of an older spec pull with: the newest credentials, where they are for the same repository.
// Those of a deployment often last no longer than it does, and what goes back to an older image has to pull it today.
func registryAuth(old, newest *skepv1.ServiceSpec) string {
	a, b := old.GetTask().GetContainer(), newest.GetTask().GetContainer()
	if a.GetRegistryAuth() != "" && b.GetRegistryAuth() != "" && spec.SameRepository(a.GetImage(), b.GetImage()) {
		return b.RegistryAuth
	}
	return a.GetRegistryAuth()
}

func sameCore(a, b *skepv1.ServiceSpec) bool { return proto.Equal(spec.Core(a), spec.Core(b)) }

// pushFiles tells the nodes where a service runs that newer versions are there for its tasks as they are. Who misses it
// asks from time to time.
func (s *Service) pushFiles(before *skepv1.ServiceSpec, after *skepv1.Service) {
	a, b := before.GetTask().GetContainer(), after.Spec.GetTask().GetContainer()
	if sameVersions(a.GetSecrets(), b.GetSecrets()) && sameVersions(a.GetConfigs(), b.GetConfigs()) || !sameCore(before, after.Spec) {
		return
	}
	for _, g := range s.ix.Groups(after.Meta.Id) {
		if strings.HasPrefix(g, index.Unplaced) {
			continue
		}
		if err := s.cfg.NC.Publish(subject.PushFiles(g), nil); err != nil {
			s.log.Debug("tell a node of newer secrets", zap.String("node", g), zap.Error(err))
		}
	}
}

func sameVersions(a, b []*skepv1.FileReference) bool {
	return slices.EqualFunc(a, b, func(x, y *skepv1.FileReference) bool { return x.Id == y.Id && x.Version == y.Version })
}

// rollSecret gives a new version of an object to the services that use it. It may be repeated: who has it, pins another
// one, or had it and went back is left alone.
func (s *Service) rollSecret(ctx context.Context, r *skepv1.RollSecretRequest) (*skepv1.RollSecretReply, error) {
	for _, b := range []subject.Bucket{subject.Spec, subject.Rev} {
		if err := s.feeds.Of(b).Current(ctx); err != nil {
			return nil, fault.Unavailable("look who uses %s %s: %v", spec.KindWord(r.Kind), r.Name, err)
		}
	}
	// Whoever asked the vault for the version changes the services.
	ctx = rpc.WithActor(ctx, rpc.Actor{Name: r.Author, Address: r.AuthorAddress})
	out := &skepv1.RollSecretReply{}
	for _, id := range s.ix.Referring(r.Id) {
		svc := s.ix.Service(id)
		if svc == nil || !s.wantsVersion(svc, r) {
			continue
		}
		_, err := s.change(ctx, id, false, func(cur *skepv1.Service) (step, error) {
			if !s.wantsVersion(cur, r) {
				return step{}, errHasVersion
			}
			next := proto.CloneOf(cur.Spec)
			for _, f := range filesOf(next, r.Id) {
				if follows(f, r.Version) {
					f.Version = r.Version
				}
			}
			// A canary that is being watched stays one: nobody said that it is good.
			return step{spec: next, canary: cur.Control.GetCanary(), summary: fmt.Sprintf("version %d of %s %s", r.Version, spec.KindWord(r.Kind), r.Name)}, nil
		})
		switch {
		case err == errHasVersion, fault.Is(err, fault.CodeNotFound):
		case err != nil:
			return nil, err
		default:
			out.Services = append(out.Services, svc.Spec.Name)
		}
	}
	return out, nil
}

var errHasVersion = fault.Conflict("the service has that version")

// wantsVersion: its newest revision follows the object in an older version, and none of its revisions has had this one.
func (s *Service) wantsVersion(svc *skepv1.Service, r *skepv1.RollSecretRequest) bool {
	if !slices.ContainsFunc(filesOf(svc.Spec, r.Id), func(f *skepv1.FileReference) bool { return follows(f, r.Version) }) {
		return false
	}
	had := func(f *skepv1.FileReference) bool { return !f.Pinned && f.Version == r.Version }
	return !slices.ContainsFunc(s.ix.RevisionsReferring(svc.Meta.Id, r.Id), func(rev *skepv1.Revision) bool {
		return rev.Number <= svc.Revision && slices.ContainsFunc(filesOf(rev.Spec, r.Id), had)
	})
}

// follows: a version takes this reference's place.
func follows(f *skepv1.FileReference, version uint64) bool { return !f.Pinned && f.Version < version }

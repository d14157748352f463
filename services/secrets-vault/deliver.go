package vault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
)

const (
	// deliverBytes bounds a delivery, and listBytes what it lists before values: one value of the largest kind and the list
	// of the task with the most files (spec.MaxFiles) are below the broker's 1 MiB. What does not fit is asked for again.
	deliverBytes = 768 << 10
	listBytes    = 20 << 10
	// deliverTasks is how many tasks one request may name.
	deliverTasks = 1000
)

// deliver gives a node the values that tasks of its own refer to, sealed to the key it made for this request. Which tasks
// are the node's, and what they refer to, state says and not the node.
func (s *Service) deliver(ctx context.Context, node string, r *skepv1.DeliverRequest) (*skepv1.DeliverReply, error) {
	ask, who, err := seal.Asked(s.idx.authorities().roots, r)
	if err != nil {
		return nil, fault.Denied("%v", err)
	}
	if who.NodeID != node || who.Role != pki.Worker && who.Role != pki.Manager {
		return nil, fault.Denied("deliver to node %s: asked for with the certificate of %s", node, who.NodeID)
	}
	if len(ask.Tasks) > deliverTasks {
		return nil, fault.Invalid("deliver to node %s: %d tasks at once, at most %d are answered", node, len(ask.Tasks), deliverTasks)
	}
	if len(ask.RegistryAuth) > 0 && who.Role != pki.Manager {
		return nil, fault.Denied("deliver to node %s: it is no manager, and gets the credentials of its tasks alone", node)
	}
	ids := make([]string, 0, len(ask.Tasks))
	for _, t := range ask.Tasks {
		ids = append(ids, t.TaskId)
	}
	tasks, err := askState(ctx, s, api.FilesOfTasks, &skepv1.TaskFilesRequest{NodeId: node, Generation: ask.Generation, TaskIds: ids})
	if err != nil {
		return nil, err
	}
	p := parcel{s: s, node: node, out: &skepv1.Delivery{Ask: seal.Digest(r)}, given: map[place]*given{}}
	defer p.wipe()
	for _, t := range ask.Tasks {
		i := slices.IndexFunc(tasks.Tasks, func(f *skepv1.TaskFiles) bool { return f.TaskId == t.TaskId })
		if i < 0 {
			p.out.Tasks = append(p.out.Tasks, &skepv1.DeliveredTask{TaskId: t.TaskId, Refused: "the managers have no such task on this node", Again: true})
			continue
		}
		if !p.task(ctx, tasks.Tasks[i], t.Held, t.Pull) {
			break
		}
	}
	for _, id := range ask.RegistryAuth {
		p.registry(ctx, id)
	}
	p.tell(ctx)
	key, err := s.idx.publicKey()
	if err != nil {
		return nil, err
	}
	sealed, err := s.idx.curveKey().To(ask.Reader, p.out)
	if err != nil {
		return nil, fault.Invalid("deliver to node %s: %v", node, err)
	}
	return &skepv1.DeliverReply{Key: key, Sealed: sealed}, nil
}

// parcel is a delivery that is being put together.
type parcel struct {
	s     *Service
	node  string
	out   *skepv1.Delivery
	given map[place]*given
	list  int // bytes of the tasks' lists
	bytes int // of the values
}

type place struct {
	id      string
	version uint64
}

// given is a value in the parcel, and for whom.
type given struct {
	o     *object
	tasks []string
}

// task adds what a task refers to and does not hold: its files or, when it is about to pull its image, the credentials
// for that. False when there is no room for its list.
func (p *parcel) task(ctx context.Context, t *skepv1.TaskFiles, held []*skepv1.HeldFile, pull bool) bool {
	d := &skepv1.DeliveredTask{TaskId: t.TaskId}
	if pull {
		t = &skepv1.TaskFiles{TaskId: t.TaskId, RegistryAuth: t.RegistryAuth}
		d.RegistryAuth = t.RegistryAuth
	} else {
		t = &skepv1.TaskFiles{TaskId: t.TaskId, Secrets: t.Secrets, Configs: t.Configs}
	}
	for _, list := range [][]*skepv1.FileReference{t.Secrets, t.Configs} {
		for _, f := range list {
			d.Files = append(d.Files, &skepv1.HeldFile{Id: f.Id, Version: f.Version})
		}
	}
	if size := proto.Size(d); p.list > 0 && p.list+size > listBytes {
		p.out.More = true
		return false
	} else {
		p.list += size
	}
	has := map[place]bool{}
	for _, h := range held {
		has[place{h.Id, h.Version}] = true
	}
	add := func(id string, version uint64, name string, kind skepv1.SecretKind) {
		if d.Refused != "" || has[place{id, version}] {
			return
		}
		if err := p.value(ctx, t.TaskId, id, version, name, kind); err != nil {
			d.Refused, d.Again = err.Error(), fault.Is(err, fault.CodeUnavailable)
		}
	}
	for _, f := range t.Secrets {
		add(f.Id, f.Version, f.Name, skepv1.SecretKind_SECRET_KIND_SECRET)
	}
	for _, f := range t.Configs {
		add(f.Id, f.Version, f.Name, skepv1.SecretKind_SECRET_KIND_CONFIG)
	}
	if t.RegistryAuth != "" {
		add(t.RegistryAuth, 1, "", skepv1.SecretKind_SECRET_KIND_REGISTRY)
	}
	p.out.Tasks = append(p.out.Tasks, d)
	return true
}

// registry adds credentials that a manager resolves an image's name with.
func (p *parcel) registry(ctx context.Context, id string) {
	d := &skepv1.DeliveredTask{RegistryAuth: id}
	if err := p.value(ctx, "", id, 1, "", skepv1.SecretKind_SECRET_KIND_REGISTRY); err != nil {
		d.Refused, d.Again = err.Error(), fault.Is(err, fault.CodeUnavailable)
	}
	p.out.Tasks = append(p.out.Tasks, d)
}

// value adds a version of an object, once for all tasks that use it. What does not fit is left for the next request.
func (p *parcel) value(ctx context.Context, task, id string, version uint64, name string, kind skepv1.SecretKind) error {
	at := place{id, version}
	if g := p.given[at]; g != nil {
		g.tasks = append(g.tasks, task)
		return nil
	}
	o, err := p.s.object(ctx, id, kind, name)
	if err != nil {
		return err
	}
	v := o.version(version)
	if v == nil {
		return fmt.Errorf("%s %s: the vault has no version %d of it", o.word(), o.name(), version)
	}
	if p.bytes > 0 && p.bytes+int(v.Size) > deliverBytes {
		p.out.More = true
		return nil
	}
	value, err := p.s.value(ctx, o, version)
	if err != nil {
		return err
	}
	d := &skepv1.DeliveredValue{Id: id, Version: version, Kind: kind, Name: o.name(), TemplateDriver: o.Secret.Spec.TemplateDriver, Value: value}
	p.out.Values = append(p.out.Values, d)
	p.bytes += proto.Size(d)
	p.given[at] = &given{o, []string{task}}
	return nil
}

// tell says who gets what before it is sent: one event a value, whatever the number of tasks.
func (p *parcel) tell(ctx context.Context) {
	for at, g := range p.given {
		p.s.publish(ctx, &skepv1.Event{Kind: g.o.word(), Id: at.id, Name: g.o.name(), Verb: "deliver", Actor: p.node, Attributes: map[string]string{
			"name": g.o.name(), "version": fmt.Sprint(at.version), "node": p.node, "tasks": short10(g.tasks),
		}})
	}
}

// short10 names ten of many.
func short10(list []string) string {
	const most = 10
	if len(list) <= most {
		return strings.Join(list, ",")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ","), len(list)-most)
}

func (p *parcel) wipe() {
	for _, v := range p.out.Values {
		seal.Wipe(v.Value)
	}
}

// object is one that a service refers to by its id: also one that was removed a moment ago, while that service was made.
func (s *Service) object(ctx context.Context, id string, kind skepv1.SecretKind, name string) (*object, error) {
	look := func() *object {
		s.whole(ctx)
		defer s.idx.mu.Unlock()
		o := s.idx.objects.byID[id]
		if o == nil || o.Secret.Kind != kind || !s.idx.objects.genuine(o) {
			return nil
		}
		return o
	}
	if o := look(); o != nil {
		return o, nil
	}
	// Another vault may have written it a moment ago.
	if err := s.feed.Current(ctx); err != nil {
		return nil, fault.Unavailable("look for %s %s: %v", spec.KindWord(kind), name, err)
	}
	if o := look(); o != nil {
		return o, nil
	}
	s.idx.mu.Lock()
	defer s.idx.mu.Unlock()
	if o := s.idx.objects.byID[id]; o != nil && o.Secret.Kind == kind {
		return nil, errAltered(o)
	}
	if kind == skepv1.SecretKind_SECRET_KIND_REGISTRY {
		return nil, errNoCredentials
	}
	return nil, fmt.Errorf("%s not found: %s", spec.KindWord(kind), name)
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/task"
)

// courier asks the vault for what tasks refer to: all that are asked for within a moment in one request, and again until
// there is no more. Each request has a key of its own, which the node's certificate vouches for; answers open with it
// alone.
type courier struct {
	s *Service

	mu     sync.Mutex
	wanted map[errandKey]*errand
	goes   bool
}

// errandKey is a task and what it wants: its files or, before it pulls its image, the credentials for that.
type errandKey struct {
	task string
	pull bool
}

// errand is one task's.
type errand struct {
	held []*skepv1.HeldFile
	done chan struct{}
	got  *task.Delivery
	err  error
}

func newCourier(s *Service) *courier { return &courier{s: s, wanted: map[errandKey]*errand{}} }

// Files gets what a task is to have and does not hold.
func (c *courier) Files(ctx context.Context, taskID string, held []*skepv1.HeldFile) (*task.Delivery, error) {
	return c.fetch(ctx, errandKey{task: taskID}, held)
}

// Registry gets what a task's image is pulled with, nil if its service has no credentials by now.
func (c *courier) Registry(ctx context.Context, taskID string) (*skepv1.DeliveredValue, error) {
	d, err := c.fetch(ctx, errandKey{taskID, true}, nil)
	if err != nil {
		return nil, err
	}
	return d.Values[d.Registry], nil
}

func (c *courier) fetch(ctx context.Context, k errandKey, held []*skepv1.HeldFile) (*task.Delivery, error) {
	c.mu.Lock()
	e := c.wanted[k]
	if e == nil {
		e = &errand{held: held, done: make(chan struct{})}
		c.wanted[k] = e
	}
	if !c.goes {
		c.goes = true
		go c.run()
	}
	c.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.done:
		return e.got, e.err
	}
}

// run goes while anything is wanted.
func (c *courier) run() {
	for {
		time.Sleep(2 * time.Millisecond) // tasks of one set come together
		c.mu.Lock()
		if len(c.wanted) == 0 {
			c.goes = false
			c.mu.Unlock()
			return
		}
		batch := map[string]*errand{}
		var pull bool // one request is for files or for credentials
		for k, e := range c.wanted {
			if len(batch) == 0 {
				pull = k.pull
			}
			if len(batch) == askTasks {
				break
			}
			if k.pull == pull {
				batch[k.task] = e
				delete(c.wanted, k)
			}
		}
		c.mu.Unlock()
		c.deliver(batch, pull)
	}
}

const (
	// askTasks bounds the tasks of one request.
	askTasks = 200
	// askPieces bounds how often one batch is gone on with; each answer brings something new.
	askPieces = 10_000
)

// deliver asks for a batch until everything is there.
func (c *courier) deliver(batch map[string]*errand, pull bool) {
	open := map[string]*errand{}
	for id, e := range batch {
		e.got = &task.Delivery{}
		open[id] = e
	}
	values := map[task.FileKey]*skepv1.DeliveredValue{}
	listed := map[string][]*skepv1.HeldFile{} // what a task is to have, once that was said
	defer func() {
		for _, v := range values {
			seal.Wipe(v.Value)
		}
	}()
	finish := func(e *errand, err error) {
		e.err = err
		close(e.done)
	}
	for range askPieces {
		d, err := c.ask(open, listed, pull, values)
		if err != nil {
			for _, e := range open {
				finish(e, err)
			}
			return
		}
		for _, v := range d.Values {
			values[task.FileKey{ID: v.Id, Version: v.Version}] = v
		}
		progress := len(d.Values) > 0
		for _, t := range d.Tasks {
			e := open[t.TaskId]
			if listed[t.TaskId] == nil && e != nil {
				listed[t.TaskId] = t.Files
				progress = true
			}
			switch {
			case e == nil:
			case t.Refused != "":
				delete(open, t.TaskId)
				progress = true
				err := errors.New(t.Refused)
				if t.Again {
					err = task.Soon(err)
				}
				finish(e, err)
			case e.complete(t, values):
				delete(open, t.TaskId)
				progress = true
				finish(e, nil)
			}
		}
		if len(open) == 0 {
			return
		}
		if !progress {
			break
		}
	}
	for _, e := range open {
		finish(e, task.Temporary(errors.New("the vault did not deliver all that was asked for")))
	}
}

// complete fills in the errand once every value it lacks is there.
func (e *errand) complete(t *skepv1.DeliveredTask, values map[task.FileKey]*skepv1.DeliveredValue) bool {
	has := map[task.FileKey]bool{}
	for _, h := range e.held {
		has[task.FileKey{ID: h.Id, Version: h.Version}] = true
	}
	d := &task.Delivery{Files: t.Files, Values: map[task.FileKey]*skepv1.DeliveredValue{}}
	need := t.Files
	if t.RegistryAuth != "" {
		d.Registry = task.FileKey{ID: t.RegistryAuth, Version: 1}
		need = append(need[:len(need):len(need)], &skepv1.HeldFile{Id: t.RegistryAuth, Version: 1})
	}
	for _, f := range need {
		k := task.FileKey{ID: f.Id, Version: f.Version}
		v := values[k]
		if v == nil && !has[k] {
			return false
		}
		if v != nil {
			d.Values[k] = proto.CloneOf(v) // who is given it overwrites it in the end
		}
	}
	e.got = d
	return true
}

// askHeld bounds what a request says of values that came with earlier answers to tasks that were not listed yet. Those that
// are left out may come once more; without a bound, many tasks with many files make a request that no broker takes.
const askHeld = 5_000

// ask makes one request.
func (c *courier) ask(open map[string]*errand, listed map[string][]*skepv1.HeldFile, pull bool, values map[task.FileKey]*skepv1.DeliveredValue) (*skepv1.Delivery, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
	defer cancel()
	node := c.s.cfg.NodeID
	r, err := seal.NewReader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	ask := &skepv1.DeliverAsk{NodeId: node, Generation: c.s.set.Generation(), Reader: r.Key()}
	room := askHeld
	for id, e := range open {
		t := &skepv1.DeliverTask{TaskId: id, Held: slices.Clone(e.held), Pull: pull}
		if files, ok := listed[id]; ok {
			for _, f := range files {
				if values[task.FileKey{ID: f.Id, Version: f.Version}] != nil {
					t.Held = append(t.Held, f)
				}
			}
		} else {
			for k := range values {
				if room == 0 {
					break
				}
				room--
				t.Held = append(t.Held, &skepv1.HeldFile{Id: k.ID, Version: k.Version})
			}
		}
		ask.Tasks = append(ask.Tasks, t)
	}
	return c.answer(ctx, r, ask)
}

func (c *courier) answer(ctx context.Context, r *seal.Reader, ask *skepv1.DeliverAsk) (*skepv1.Delivery, error) {
	if c.s.cfg.Certificate == nil {
		return nil, errors.New("this agent was given no certificate to ask the vault with")
	}
	req, err := seal.Ask(c.s.cfg.Certificate, ask)
	if err != nil {
		return nil, err
	}
	reply, err := api.Call(ctx, c.s.cfg.NC, api.VaultDeliver.At(ask.NodeId), req)
	switch {
	case fault.Is(err, fault.CodeDenied), fault.Is(err, fault.CodeInvalid):
		return nil, err
	case err != nil:
		return nil, task.Temporary(fmt.Errorf("ask the vault: %w", err))
	}
	d := &skepv1.Delivery{}
	if err := r.Open(c.s.cfg.Certificate.CA(), reply.Key, reply.Sealed, d); err != nil {
		return nil, task.Temporary(fmt.Errorf("open the vault's answer: %w", err))
	}
	if !bytes.Equal(d.Ask, seal.Digest(req)) {
		return nil, task.Temporary(errors.New("the vault's answer is to another request"))
	}
	return d, nil
}

// credentials gets what a manager may have apart from any task: to resolve or pull an image that a service is about to use.
func (c *courier) credentials(ctx context.Context, id string) (*skepv1.DeliveredValue, error) {
	r, err := seal.NewReader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d, err := c.answer(ctx, r, &skepv1.DeliverAsk{NodeId: c.s.cfg.NodeID, Generation: c.s.set.Generation(), Reader: r.Key(), RegistryAuth: []string{id}})
	if err != nil {
		return nil, err
	}
	for _, t := range d.Tasks {
		if t.RegistryAuth == id && t.Refused != "" {
			return nil, fault.Denied("%s", t.Refused)
		}
	}
	for _, v := range d.Values {
		if v.Id == id {
			return v, nil
		}
	}
	return nil, task.Temporary(errors.New("the vault did not deliver the registry's credentials"))
}

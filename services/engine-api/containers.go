package engine

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"skep.dev/libs/containers"
	"skep.dev/libs/rpc"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// agent is this node's, of whom all is asked that belongs to the node alone.
func (s *Service) agent() (containers.Node, error) {
	if s.cfg.Node == nil {
		return nil, wire.Unserved("skep does not serve what is of one node where its services are processes of their own: %s; skep image ls and skep volume ls list what is on nodes", useTask)
	}
	n := s.cfg.Node()
	if n == nil {
		return nil, wire.Unavailable("the agent of this node is starting, or stopping; try again in a moment")
	}
	return n, nil
}

// asRoot is a context for what is asked of the agent: it is noted as what local root asked, who alone may come (listen.go).
func asRoot(ctx context.Context) context.Context {
	return rpc.WithActor(ctx, rpc.Actor{Name: rpc.Root, Address: "local"})
}

func viewOf(n containers.Node) translate.ContainerView {
	return translate.ContainerView{NodeID: n.ID(), Hostname: n.Hostname(), Now: time.Now()}
}

// container finds one of this node by id, name, with or without a slash in front, or the beginning of its id.
func (s *Service) container(ref string) (containers.Node, containers.Container, error) {
	n, err := s.agent()
	if err != nil {
		return nil, containers.Container{}, err
	}
	c, err := findContainer(n, ref)
	return n, c, err
}

func findContainer(n containers.Node, ref string) (containers.Container, error) {
	if c, ok := n.Container(ref); ok {
		return c, nil
	}
	name, view := strings.TrimPrefix(ref, "/"), viewOf(n)
	var found []containers.Container
	for _, c := range n.Containers() {
		if translate.ContainerName(c, view) == name {
			return c, nil
		}
		if ref != "" && strings.HasPrefix(c.ID(), ref) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return containers.Container{}, wire.NotFound("No such container: %s", ref)
	case 1:
		return found[0], nil
	}
	return containers.Container{}, wire.Invalid("Multiple IDs found with provided prefix: %s", ref)
}

// commands remembers what containers run, which does not change: a list would have to ask containerd for each of them.
type commands struct {
	mu sync.Mutex
	of map[string]*containers.Process
}

// look fills in what runs in a container that is still there.
func (k *commands) look(ctx context.Context, n containers.Node, c containers.Container) *containers.Process {
	k.mu.Lock()
	p := k.of[c.ID()]
	k.mu.Unlock()
	if p != nil || translate.ContainerState(c) == container.StateExited {
		return p
	}
	p, err := n.Process(ctx, c.ID())
	if err != nil {
		return nil // it ends just now, or containerd is away: what the spec says is told
	}
	p = &containers.Process{Args: p.Args} // the environment may be large, and lists do not have it
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = map[string]*containers.Process{}
	}
	k.of[c.ID()] = p
	return p
}

// keep forgets the others.
func (k *commands) keep(all []containers.Container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.of) <= len(all) {
		return
	}
	there := map[string]bool{}
	for _, c := range all {
		there[c.ID()] = true
	}
	for id := range k.of {
		if !there[id] {
			delete(k.of, id)
		}
	}
}

func (s *Service) listContainers(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters(containerFilters...)
	if err != nil {
		return err
	}
	limit := 0
	if text := r.Query.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil {
			return wire.Invalid("invalid limit '%s': it is a number of containers", text)
		}
	}
	n, err := s.agent()
	if err != nil {
		return err
	}
	want, err := readContainerFilter(r.Context(), n, f)
	if err != nil {
		return err
	}
	all := n.Containers()
	s.commands.keep(all)
	slices.SortFunc(all, func(a, b containers.Container) int { // the newest first
		return cmp.Or(cmp.Compare(b.Record.GetCreatedUnixMs(), a.Record.GetCreatedUnixMs()), strings.Compare(a.ID(), b.ID()))
	})
	ended := r.Bool("all") || limit > 0 || f.Has("status") || f.Has("exited")
	out := []container.Summary{}
	view := viewOf(n)
	for _, c := range all {
		if !ended && translate.ContainerState(c) != container.StateRunning || !want.fits(c, view) {
			continue
		}
		view := view
		view.Process = s.commands.look(r.Context(), n, c)
		out = append(out, translate.ContainerSummary(c, view))
		if limit > 0 && len(out) == limit {
			break
		}
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

func (s *Service) inspectContainer(w http.ResponseWriter, r *wire.Request) error {
	if s.cfg.Node == nil { // so that docker inspect tries the next kind
		return wire.NotFound("No such container: %s", r.Var("id"))
	}
	n, c, err := s.container(r.Var("id"))
	if err != nil {
		return err
	}
	view := viewOf(n)
	if translate.ContainerState(c) != container.StateExited {
		if p, err := n.Process(r.Context(), c.ID()); err == nil { // else it ends just now: what the spec says is told
			view.Process = p
		}
	}
	return wire.WriteJSON(w, http.StatusOK, translate.ContainerFor(translate.Container(c, view), r.Version))
}

// ofService refuses what would take a container away from its service: its scheduler would make another.
func (s *Service) ofService(what, instead string) wire.Handler {
	return func(_ http.ResponseWriter, r *wire.Request) error {
		n, c, err := s.container(r.Var("id"))
		if err != nil {
			return err
		}
		return wire.Errorf(http.StatusConflict, "cannot %s container %s: it is task %s of service %s, whose managers decide what runs; %s", what, r.Var("id"),
			translate.ContainerName(c, viewOf(n)), c.Revision.GetSpec().GetName(), strings.ReplaceAll(instead, "SERVICE", c.Revision.GetSpec().GetName()))
	}
}

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"skep.dev/services/ingress-mesh/internal/nsfs"
)

// recover compares the records with the kernel after a start: it keeps what is whole or can be made whole, and
// removes what belongs to no task. It runs before anything can be attached.
func (s *Service) recover(ctx context.Context) error {
	if a, ok := s.records.lastAddress(); ok {
		s.pool.startAfter(a)
	}
	tasks, err := s.records.list()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, task := range tasks {
		rec, ok, err := s.records.load(task)
		if err != nil {
			return err
		}
		if ok && nsfs.At(s.nsPath(task)) {
			err := s.claim(rec)
			if err == nil {
				s.setLive(rec)
				err = s.reconnect(ctx, task)
			}
			if !errors.Is(err, errHeld) {
				known[task] = true
				if err != nil {
					s.log.Error("repair after a restart", zap.Error(err)) // the other tasks must not suffer
				}
				continue
			}
		}
		s.log.Info("drop a network record without a namespace", zap.String("task", task))
		rec.Task = task
		if err := s.dismantle(ctx, rec); err != nil {
			return err
		}
	}
	if err := s.removeStrays(known); err != nil {
		return err
	}
	if err := s.removeStrayNetworks(ctx); err != nil {
		return err
	}
	return s.applyPorts(ctx)
}

// removeStrayNetworks removes overlay networks that no known task is on.
func (s *Service) removeStrayNetworks(ctx context.Context) error {
	have, err := s.overlays.List()
	if err != nil {
		return err
	}
	for _, id := range have {
		if s.tasksCount(id) > 0 {
			continue
		}
		if err := s.removeNetwork(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// removeStrays removes our links and namespaces that no known task has.
func (s *Service) removeStrays(known map[string]bool) error {
	names := map[string]bool{}
	for task := range known {
		names[vethName(task)] = true
	}
	links, err := s.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if ours(l) && !names[l.Attrs().Name] {
			if err := s.nl.LinkDel(l); err != nil && !notFound(err) {
				return fmt.Errorf("remove the stray link %s: %w", l.Attrs().Name, err)
			}
		}
	}
	entries, err := os.ReadDir(s.netns)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list the namespaces: %w", err)
	}
	for _, e := range entries {
		if !known[e.Name()] {
			if err := nsfs.Remove(s.nsPath(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) links() ([]netlink.Link, error) {
	links, err := s.nl.LinkList()
	// A dump interrupted by a change is still a list; what it missed is found at the next start.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list the host's links: %w", err)
	}
	return links, nil
}

// Cleanup removes every trace of the mesh from the host, for a node that leaves its cluster: task networks, the
// bridge, the table, the chain, the files. IP forwarding stays on: others may rely on it by now. It works
// whether or not Run was called, also while it runs, and may be repeated; the service makes nothing after it.
func (s *Service) Cleanup() error {
	s.cleaned.Store(true)
	s.host.Lock()
	defer s.host.Unlock()
	h := s.nl
	if h == nil {
		var err error
		if h, err = netlink.NewHandle(); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		s.nl = h
	}
	var errs []error
	errs = append(errs, s.removeStrays(nil))
	if l, err := h.LinkByName(Bridge); err == nil && l.Type() == "bridge" {
		errs = append(errs, h.LinkDel(l))
	}
	networks, err := s.overlays.List()
	errs = append(errs, err)
	for _, id := range networks {
		errs = append(errs, s.tunnels.Remove(s.Life(), id))
	}
	errs = append(errs, s.plane.Cleanup(), s.overlays.Cleanup())
	for _, d := range []string{s.netns, s.records.dir} {
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

package conn

import (
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
)

// mostServers bounds what a context remembers.
const mostServers = 8

// learn has a context remember the managers that there are, as one of them told over a connection to the cluster's
// certificate; worked is the address of that connection. The file is written when that is news.
func (s Store) learn(name, worked string, told []string) error {
	return s.change(name, func(c *Context) bool {
		next := withServers(c.Servers(), worked, told)
		if slices.Equal(next, c.Servers()) {
			return false
		}
		c.Addr, c.Others = next[0], next[1:]
		if len(c.Others) == 0 {
			c.Others = nil
		}
		return true
	})
}

// withServers are the addresses to remember: the one that worked, those that were there before (they may be the only ones that
// can be reached from here), and those that were told. When they are too many, those go that nobody told of.
func withServers(had []string, worked string, told []string) []string {
	var out []string
	for _, a := range slices.Concat([]string{worked}, had, slices.Sorted(slices.Values(told))) {
		if host, port, err := net.SplitHostPort(a); err == nil && host != "" && port != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for len(out) > mostServers {
		last := len(out) - 1
		for i := last; i > 0; i-- {
			if !slices.Contains(told, out[i]) {
				last = i
				break
			}
		}
		out = slices.Delete(out, last, last+1)
	}
	return out
}

// change reads a context, changes it and writes it, while no other command does: the old one is there, or the new one. One
// that was removed meanwhile stays away.
func (s Store) change(name string, f func(*Context) bool) error {
	dir, err := os.Open(s.Dir)
	if err != nil {
		return fmt.Errorf("change context %s: %w", name, err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("change context %s: lock %s: %w", name, s.Dir, err)
	}
	c, err := s.Load(name)
	if err != nil || !f(&c) {
		return err
	}
	return s.replace(c)
}

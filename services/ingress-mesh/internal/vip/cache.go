package vip

import (
	"errors"
	"fmt"
	"sync"
)

// Cache remembers what namespaces have been found or made to hold, so that the kernel is read again only when somebody
// else has changed a namespace's ruleset, which the kernel tells by a number. It keeps one copy for all namespaces that
// hold the same. The zero value is ready for use; it is safe for concurrent use.
type Cache struct {
	mu      sync.Mutex
	spaces  map[string]*space
	layouts map[uint64]*layout // by digest
	// The last difference made: the tasks of a network go from one layout to the next one after the other.
	from, to *layout
	diff     change
}

// space is what is known of one namespace.
type space struct {
	mu         sync.Mutex // held while the namespace is changed, and guards the rest
	path       string
	cookie     uint64
	generation uint32
	digest     uint64
	is         *layout // nil: unknown
}

// Apply makes the namespace at path translate the virtual addresses of want, and no others. It writes only what
// differs; when nothing does, it costs one question to the kernel.
func (c *Cache) Apply(path string, want []Service) (err error) {
	s := c.space(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	cookie, err := k.cookie()
	if err != nil {
		return err
	}
	gen, err := k.generation()
	if err != nil {
		return err
	}
	sum := digest(want)
	from := s.is
	if s.cookie != cookie || s.generation != gen {
		from = nil
	}
	if from != nil && s.digest == sum {
		return nil
	}
	to := c.take(sum, want)
	var last error
	exists := from != nil
	for range 3 { // somebody else may change the ruleset between the comparison and the transaction
		if from == nil {
			t, g, err := k.read()
			if err != nil {
				c.settle(s, nil, 0)
				return err
			}
			gen, exists = g, t != nil
			if t.sound() {
				from = t.layout()
			}
		}
		d := c.difference(from, to)
		n := uint32(0)
		if d.writing {
			if n, err = d.write(k.nft, exists); err != nil {
				last, from = err, nil
				continue
			}
		}
		after, err := k.generation()
		if err != nil {
			return err
		}
		if after != gen+n { // another change went in between: look again next time
			c.settle(s, nil, 0)
		} else {
			s.cookie, s.generation = cookie, after
			c.settle(s, to, sum)
		}
		return k.forgetUntranslated(d.opened)
	}
	c.settle(s, nil, 0)
	return fmt.Errorf("change nftables table inet %s in namespace %s: %w", tableName, path, last)
}

// Forget drops what is remembered of a namespace that is gone.
func (c *Cache) Forget(path string) {
	c.mu.Lock()
	s := c.spaces[path]
	delete(c.spaces, path)
	c.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.settle(s, nil, 0)
	}
}

func (c *Cache) space(path string) *space {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.spaces[path]
	if s == nil {
		if c.spaces == nil {
			c.spaces, c.layouts = map[string]*space{}, map[uint64]*layout{}
		}
		s = &space{path: path}
		c.spaces[path] = s
	}
	return s
}

// take gives the layout of want, made now or for another namespace before.
func (c *Cache) take(sum uint64, want []Service) *layout {
	c.mu.Lock()
	l := c.layouts[sum]
	c.mu.Unlock()
	if l != nil {
		return l
	}
	return newLayout(want)
}

// settle records what a namespace has; of one that was forgotten meanwhile, nothing.
func (c *Cache) settle(s *space, l *layout, sum uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spaces[s.path] != s {
		l = nil
	}
	if l != nil {
		if same := c.layouts[sum]; same != nil {
			l = same
		}
		c.layouts[sum] = l
		l.refs++
	}
	if s.is != nil {
		if s.is.refs--; s.is.refs == 0 {
			delete(c.layouts, s.digest)
		}
	}
	s.is, s.digest = l, sum
}

func (c *Cache) difference(from, to *layout) change {
	c.mu.Lock()
	if c.from == from && c.to == to {
		defer c.mu.Unlock()
		return c.diff
	}
	c.mu.Unlock()
	d := difference(from, to)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from, c.to, c.diff = from, to, d
	return d
}

// Apply is Cache.Apply without a memory: it reads the kernel in any case.
func Apply(path string, want []Service) error { return new(Cache).Apply(path, want) }

// Read gives what the kernel translates in the namespace at path, ordered by service.
func Read(path string) (out []Counted, err error) {
	k, err := open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	t, _, err := k.read()
	if err != nil || t == nil {
		return nil, err
	}
	return counted(t.sets), nil
}

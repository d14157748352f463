package volume

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Local is the driver every node has: directories below the agent's own, and whatever mount(8) can mount there.
const Local = "local"

// The scopes of a driver: each node has its own volume of a name, or it is the same one everywhere.
const (
	ScopeLocal  = "local"
	ScopeGlobal = "global"
)

// ErrNotFound says that a driver has no volume of that name.
var ErrNotFound = errors.New("no such volume")

// Info is what a driver tells of a volume.
type Info struct {
	Name       string
	Driver     string
	Mountpoint string    // "" while it is not mounted
	CreatedAt  time.Time // zero = the driver does not say
	Labels     map[string]string
	Options    map[string]string
	Status     map[string]string // what a plug-in tells of it
	Mounted    bool              // the node holds it: it is attached, or the file system of its options is mounted
	Anonymous  bool
}

// Driver keeps volumes: the local one, or a plug-in.
type Driver interface {
	Create(ctx context.Context, name string, opts map[string]string) error // again with the same options: nothing
	Remove(ctx context.Context, name string) error
	Mount(ctx context.Context, name, task string) (path string, err error) // counted by task, idempotent
	Unmount(ctx context.Context, name, task string) error                  // idempotent
	Get(ctx context.Context, name string) (Info, error)                    // ErrNotFound
	List(ctx context.Context) ([]Info, error)
	Scope(ctx context.Context) (string, error) // local or global
}

// Use returns the driver of a name: "" is the local one.
func (s *Store) Use(driver string) (Driver, error) {
	if driver == "" || driver == Local {
		return local{s}, nil
	}
	if s.cfg.Drivers == nil {
		return nil, fmt.Errorf("volume driver %q is not available on this node: only local volumes are", driver)
	}
	return s.cfg.Drivers(driver)
}

// Plugins are the names of the plug-ins there are on the node.
func (s *Store) Plugins() []string {
	if s.cfg.Plugins == nil {
		return nil
	}
	return s.cfg.Plugins()
}

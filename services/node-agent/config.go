// Package agent runs the tasks of one node: it takes the node's task set from the managers, makes containers of it, and
// tells what became of each. It owns containers, images, volumes, logs and exec on its node, and containerd itself.
//
// It refuses to decide where or whether anything runs, and to stop anything merely because managers are away.
// Failure story: the agent, containerd and every manager may die at any time: containers run on, a new agent finds them
// by its files and containerd's, reports what ended meanwhile with its exit code, and removes what belongs to nobody.
package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"skep.dev/libs/attach"
	"skep.dev/libs/pki"
	"skep.dev/services/node-agent/internal/plugin"
	"skep.dev/services/node-agent/internal/registry"
)

// Registries is what the node knows of image registries; see registry.Config.
type Registries = registry.Config

// Registry is one of them.
type Registry = registry.Host

// Config is what an agent needs.
type Config struct {
	NodeID string
	// NC may be disconnected, now and for as long as it likes.
	NC  *nats.Conn
	Log *zap.Logger
	// DataDir is the node's (default /var/lib/skep), RunDir its sockets' (default /run/skep).
	DataDir, RunDir string
	Version         string
	// Certificate is the node's: the vault delivers secrets to who can sign with it.
	Certificate pki.Source
	// Attacher gives tasks their networks.
	Attacher attach.Attacher

	// ContainerdAddress is the socket of a containerd somebody else runs. Empty: the agent runs its own, found in BinDir,
	// PATH and /usr/lib/skep/bin.
	ContainerdAddress string
	BinDir            string

	// PluginDirs are the folders in which volume plug-ins are looked for, with commas between them (default: Docker's).
	PluginDirs string

	// Registries; nil = `<data-dir>/registries.toml`.
	Registries *Registries

	// StartParallelism bounds the containers made and started at once (default: twice the CPUs).
	StartParallelism int
	// MaxTasks is the most tasks the node takes, 0 = no limit.
	MaxTasks uint32

	Hostname      string // default: the host's
	AdvertiseAddr string
	DataPathAddr  string
	Labels        map[string]string // engine labels
	// Generic resources the node offers; reported as they are.
	Generic map[string][]string
	// Manager: answer skep.v1.api.image.resolve too, from the beginning (Service.SetManager).
	Manager bool
	// Leaving: Close tells the managers that the node leaves now, instead of letting them find out.
	Leaving bool
	// Restarts: who ends the agent starts it again at once, perhaps as another program, and the managers are told so: they wait
	// thirty seconds before they take the node for lost.
	Restarts bool
	// Upgrader replaces the program of the node's daemon; nil: its services are processes of their own.
	Upgrader Upgrader
	// Metrics is where the agent shows what it does, nil = nowhere.
	Metrics prometheus.Registerer
}

var token = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (c *Config) check() error {
	switch {
	case !token.MatchString(c.NodeID):
		return fmt.Errorf("agent: the node id %q is not a single word of letters and digits", c.NodeID)
	case c.NC == nil:
		return errors.New("agent: no NATS connection given")
	case c.Attacher == nil:
		return errors.New("agent: no network attacher given: tasks never share the host's network by accident")
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if _, err := plugin.ParseDirs(c.PluginDirs); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if c.DataDir == "" {
		c.DataDir = "/var/lib/skep"
	}
	if c.RunDir == "" {
		c.RunDir = "/run/skep"
	}
	for _, p := range []*string{&c.DataDir, &c.RunDir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		*p = abs
	}
	if c.StartParallelism <= 0 {
		c.StartParallelism = 2 * runtime.NumCPU()
	}
	if c.Hostname == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("agent: the host's name: %w", err)
		}
		c.Hostname = h
	}
	if c.Registries == nil {
		r, err := registry.Load(filepath.Join(c.DataDir, "registries.toml"))
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		c.Registries = &r
	} else if err := c.Registries.Check(); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

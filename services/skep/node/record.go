package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Role of a node in its record.
const (
	RoleManager = "manager"
	RoleWorker  = "worker"
)

// Record is <data-dir>/node.json: what makes this machine a node of a cluster.
type Record struct {
	NodeID    string    `json:"node_id"`
	ClusterID string    `json:"cluster_id"`
	Role      string    `json:"role"`
	Hostname  string    `json:"hostname"`
	Joined    time.Time `json:"joined"`

	Advertise string `json:"advertise"` // host:port clients and nodes reach this manager at; workers: the host alone
	Listen    string `json:"listen,omitempty"`
	DataPath  string `json:"data_path,omitempty"`
	RoutePort int    `json:"route_port,omitempty"`
	// Managers are the addresses (host:port) this node dials, itself left out.
	Managers []string `json:"managers,omitempty"`
	// Witness is the name of the voting-only server a lone manager runs beside its own, "" with three managers.
	Witness string `json:"witness,omitempty"`

	Containerd string `json:"containerd,omitempty"` // address of a containerd that is not ours
	MaxTasks   uint32 `json:"max_tasks,omitempty"`
	// Subnet is the one this node's containers live in, as state allocated it.
	Subnet string `json:"subnet,omitempty"`

	// Init holds what the first start of the first manager has to store, until it is stored.
	Init *Initial `json:"init,omitempty"`
}

// Initial is the cluster as `skep init` asked for it.
type Initial struct {
	Cluster      json.RawMessage `json:"cluster"` // protojson of skep.v1.ClusterSpec
	CADigest     string          `json:"ca_digest"`
	Availability string          `json:"availability"`
}

// Paths of a node.
type Paths struct {
	Data string
	Run  string
}

// DefaultPaths is where a node lives unless told otherwise.
var DefaultPaths = Paths{Data: "/var/lib/skep", Run: "/run/skep"}

func (p Paths) record() string  { return filepath.Join(p.Data, "node.json") }
func (p Paths) certs() string   { return filepath.Join(p.Data, "certs") }
func (p Paths) vault() string   { return filepath.Join(p.Data, "vault") }
func (p Paths) bus() string     { return filepath.Join(p.Data, "bus") }
func (p Paths) log() string     { return filepath.Join(p.Data, "skep.log") }
func (p Paths) pid() string     { return filepath.Join(p.Data, "skep.pid") }
func (p Paths) broker() string  { return filepath.Join(p.Run, "skep.sock") }
func (p Paths) control() string { return filepath.Join(p.Run, "node.sock") }

// ErrNoNode: this machine is not part of a cluster.
var ErrNoNode = errors.New("this node is not part of a swarm; use \"skep init\" or \"skep join\" first")

// Load reads the record, ErrNoNode when there is none.
func Load(p Paths) (*Record, error) {
	b, err := os.ReadFile(p.record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoNode
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read the node's record %s: %w; restore it, or leave with \"skep leave --force\" and join again", p.record(), err)
	}
	return &r, nil
}

// Save writes the record so that a crash leaves the old one or the new one.
func (r *Record) Save(p Paths) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.Data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	tmp := p.record() + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the node's record: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, p.record())
	}
	if err != nil {
		return fmt.Errorf("write the node's record: %w", err)
	}
	return nil
}

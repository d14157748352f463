// Package member is what makes a machine a node of a cluster: its record node.json, the places of its files, who runs
// on them, and the few steps that every form of a node takes on its way up.
//
// It owns <data-dir>/node.json and <data-dir>/lock/. `skep node run` (all services in one process) and the services'
// own binaries read the same record, so a node may change from one form to the other by a restart; the locks keep it
// from being both at once. Nothing here knows a service.
//
// Failure story: the record is replaced whole, under a lock, so neither a crash nor two writers lose a field. Locks are
// the kernel's: they end with their process, however it ends.
package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"skep.dev/libs/atomicfile"
)

// Role of a node in its record.
const (
	RoleManager = "manager"
	RoleWorker  = "worker"
	// RoleWitness is a machine that runs a manager's broker and nothing else. It stays one for as long as it is in the cluster.
	RoleWitness = "witness"
)

// Record is <data-dir>/node.json: what makes this machine a node of a cluster.
type Record struct {
	NodeID    string    `json:"node_id"`
	ClusterID string    `json:"cluster_id"`
	Role      string    `json:"role"`
	Hostname  string    `json:"hostname"`
	Joined    time.Time `json:"joined"`

	Advertise string `json:"advertise"` // host:port clients and nodes reach this manager at; workers: the host alone
	// AdvertiseFound: nobody gave the address, it was found when the node was made, and is found again when the machine has
	// another.
	AdvertiseFound bool `json:"advertise_found,omitempty"`
	// Listen is where a manager takes connections; a worker's is where it would if it were promoted, "" = DefaultListen.
	Listen    string `json:"listen,omitempty"`
	DataPath  string `json:"data_path,omitempty"`
	RoutePort int    `json:"route_port,omitempty"`
	// Managers are the addresses (host:port) this node dials, itself left out. They follow the group (Follower).
	Managers []string `json:"managers,omitempty"`
	// Told are the addresses (host:port) at which this manager was told to look for the others, until it has found them.
	Told []string `json:"told,omitempty"`
	// Epoch is that of the group which Managers are of: what an older one says counts for nothing.
	Epoch uint64 `json:"epoch,omitempty"`
	// Witness is the name of the voting-only server a lone manager runs beside its own, "" with three managers.
	Witness string `json:"witness,omitempty"`

	Containerd string `json:"containerd,omitempty"` // address of a containerd that is not ours
	MaxTasks   uint32 `json:"max_tasks,omitempty"`
	// MetricsAddr is where `skep node run` serves metrics, host:port, "" = nowhere. Services that run as processes of
	// their own need an address each, and take it from their flag.
	MetricsAddr string `json:"metrics_addr,omitempty"`
	// Subnet is the one this node's containers live in, as state allocated it.
	Subnet string `json:"subnet,omitempty"`
	// Number names the node in the data path, DataPathPort is the UDP port of all nodes' data path; both as state has them.
	Number       uint32 `json:"number,omitempty"`
	DataPathPort uint32 `json:"data_path_port,omitempty"`

	// Init holds what the first start of the first manager has to store, until it is stored.
	Init *Initial `json:"init,omitempty"`
}

// Initial is the cluster as `skep init` asked for it.
type Initial struct {
	Cluster      json.RawMessage `json:"cluster"` // protojson of skep.v1.ClusterSpec
	CADigest     string          `json:"ca_digest"`
	Availability string          `json:"availability"`
}

// Paths of a node: each method names one of its files, folders or sockets (docs/contracts.md).
type Paths struct {
	Data string
	Run  string
}

// DefaultPaths is where a node lives unless told otherwise.
var DefaultPaths = Paths{Data: "/var/lib/skep", Run: "/run/skep"}

func (p Paths) Record() string  { return filepath.Join(p.Data, "node.json") }
func (p Paths) Certs() string   { return filepath.Join(p.Data, "certs") }
func (p Paths) Vault() string   { return filepath.Join(p.Data, "vault") }
func (p Paths) Bus() string     { return filepath.Join(p.Data, "bus") }
func (p Paths) Log() string     { return filepath.Join(p.Data, "skep.log") }
func (p Paths) PID() string     { return filepath.Join(p.Data, "skep.pid") }
func (p Paths) Broker() string  { return filepath.Join(p.Run, "skep.sock") }
func (p Paths) Control() string { return filepath.Join(p.Run, "node.sock") }
func (p Paths) Mesh() string    { return filepath.Join(p.Run, "mesh.sock") }
func (p Paths) Docker() string  { return filepath.Join(p.Run, "docker.sock") }

// BrokerNow is where the broker's socket is: in the run directory, or in the data directory where a broker that does not run as root
// has it (deploy/compose.yaml).
func (p Paths) BrokerNow() string {
	usual := p.Broker()
	if _, err := os.Lstat(usual); errors.Is(err, fs.ErrNotExist) && p.Data != "" {
		kept := filepath.Join(p.Data, "run", filepath.Base(usual))
		if _, err := os.Lstat(kept); err == nil {
			return kept
		}
	}
	return usual
}

func (p Paths) lock(name string) string { return filepath.Join(p.Data, "lock", name) }

// ErrNoNode: this machine is not part of a cluster.
var ErrNoNode = errors.New("this node is not part of a swarm; use \"skep init\" or \"skep join\" first")

// Load reads the record, ErrNoNode when there is none.
func Load(p Paths) (*Record, error) {
	b, err := os.ReadFile(p.Record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoNode
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read the node's record %s: %w; restore it, or leave with \"skep leave --force\" and join again", p.Record(), err)
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
	if err := atomicfile.WriteSync(p.Record(), append(b, '\n')); err != nil {
		return fmt.Errorf("write the node's record: %w", err)
	}
	return nil
}

// Update changes the record on disk: several processes of a node may each know something new.
func Update(p Paths, change func(*Record)) (*Record, error) {
	release, err := lock(p.lock("node.json"), 0)
	if err != nil {
		return nil, fmt.Errorf("change the node's record: %w", err)
	}
	defer release()
	r, err := Load(p)
	if err != nil {
		return nil, err
	}
	change(r)
	return r, r.Save(p)
}

// Host is the address others reach this node at, without a port.
func (r *Record) Host() string { return HostOf(r.Advertise) }

// Underlay is the address the other nodes reach this one's containers by.
func (r *Record) Underlay() string {
	if r.DataPath != "" {
		return r.DataPath
	}
	return r.Host()
}

// Votes reports whether the node's broker is one of the group that keeps the store: a manager's, or a witness's.
func (r *Record) Votes() bool { return r.Role == RoleManager || r.Role == RoleWitness }

// Local is where this manager's own broker is reached on this machine.
func (r *Record) Local() string {
	host, port, err := net.SplitHostPort(r.Listen)
	if err != nil {
		return r.Advertise
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// Dial lists the brokers this node connects to, the nearest first.
func (r *Record) Dial() []string {
	if r.Role == RoleManager {
		return append([]string{r.Local()}, r.Managers...)
	}
	return r.Managers
}

// ManagerAddrs lists the managers as other machines reach them.
func (r *Record) ManagerAddrs() []string {
	if r.Role == RoleManager {
		return append([]string{r.Advertise}, r.Managers...)
	}
	return r.Managers
}

// AddrsOf tells the managers' addresses as the record on the disk has them now, where another process of the node follows
// them; was is what is known if it cannot be read.
func AddrsOf(p Paths, was *Record) func() []string {
	return func() []string {
		if r, err := Load(p); err == nil {
			return r.ManagerAddrs()
		}
		return was.ManagerAddrs()
	}
}

// TaskLimit is how many tasks the node takes: what the operator said, at most what its subnet has addresses for.
// It is 0, no limit, while neither is known.
func (r *Record) TaskLimit() uint32 {
	_, n, err := net.ParseCIDR(r.Subnet)
	if err != nil {
		return r.MaxTasks
	}
	ones, bits := n.Mask.Size()
	room := uint32(1)<<(bits-ones) - 3 // network, gateway, broadcast
	if r.MaxTasks == 0 {
		return room
	}
	return min(r.MaxTasks, room)
}

// HostOf is the host of host:port, or all of an address without a port.
func HostOf(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}

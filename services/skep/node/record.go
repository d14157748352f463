package node

import "skep.dev/libs/member"

// What init and join write and every service of the node reads: see libs/member.
type (
	// Record is <data-dir>/node.json.
	Record = member.Record
	// Initial is the cluster as `skep init` asked for it.
	Initial = member.Initial
	// Paths of a node.
	Paths = member.Paths
)

// Role of a node in its record.
const (
	RoleManager = member.RoleManager
	RoleWorker  = member.RoleWorker
	RoleWitness = member.RoleWitness
)

// DefaultPaths is where a node lives unless told otherwise.
var DefaultPaths = member.DefaultPaths

// ErrNoNode: this machine is not part of a cluster.
var ErrNoNode = member.ErrNoNode

// Load reads the record, ErrNoNode when there is none.
func Load(p Paths) (*Record, error) { return member.Load(p) }

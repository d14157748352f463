package place

import (
	"fmt"
	"slices"
	"strings"

	"skep.dev/libs/constraint"
)

// FailureLimit is how many failures of a service within five minutes make a node its last choice.
const FailureLimit = 5

// Port is a port of the node that only one task may hold, at one address of the node or, with none, at all of them.
type Port struct {
	number uint32 // and the protocol
	at     string
}

// MakePort packs a protocol (tcp, udp, sctp), a number and the node's address, "" = all.
func MakePort(proto string, number uint32, at string) Port {
	p := Port{number & 0xffff, at}
	switch proto {
	case "udp":
		p.number |= 1 << 16
	case "sctp":
		p.number |= 2 << 16
	}
	return p
}

// String is a port as people write it: 80/tcp.
func (p Port) String() string {
	return fmt.Sprintf("%d/%s", p.number&0xffff, [...]string{"tcp", "udp", "sctp"}[p.number>>16])
}

// Meets reports whether two tasks cannot hold these on one node.
func (p Port) Meets(o Port) bool {
	return p.number == o.number && (p.at == o.at || p.at == "" || o.at == "")
}

// Platform is an operating system and an architecture; an empty part matches any.
type Platform struct{ OS, Arch string }

// Plugin is a driver a node has or a task needs.
type Plugin struct{ Type, Name string }

// Generic is an amount of a user-defined resource: Value of a discrete one, or the Named instances.
type Generic struct {
	Kind  string
	Value int64
	Named []string
}

func (g *Generic) count() int64 {
	if len(g.Named) > 0 {
		return int64(len(g.Named))
	}
	return g.Value
}

// Node is what the engine knows of a node. Free amounts are totals less what tasks that have not ended reserve.
type Node struct {
	constraint.Node
	Ready       bool // alive and accepting new tasks
	Plugins     []Plugin
	CPU, Memory int64 // totals, nano CPUs and bytes
	MaxTasks    int   // 0 = no limit

	FreeCPU, FreeMemory int64
	FreeGeneric         []Generic
	Tasks               int // that are meant to run
	Held                int // that have not ended, for MaxTasks
	Ports               []Port
}

// Request is what each task of one service revision needs of a node. It must not change while an engine uses it.
type Request struct {
	Constraints []string
	Platforms   []Platform // empty = any
	Plugins     []Plugin
	CPU, Memory int64 // reservations
	Generic     []Generic
	Ports       []Port
	MaxPerNode  int      // 0 = no limit
	Spread      []string // preference descriptors, outermost first
}

// Count is a number of tasks of the service on a node, by the node's index.
type Count struct {
	Node int32
	N    int32
}

// Placement is where a task goes and which generic resources it got there.
type Placement struct {
	Node     int32
	Assigned []Generic
}

// RunsOn reports whether one of the platforms that the image exists for is the node's. A part that is not known, on
// either side, matches. Case does not count, and architectures have several names (constraint.Arch).
func (r *Request) RunsOn(n *constraint.Node) bool {
	return len(r.Platforms) == 0 || slices.ContainsFunc(r.Platforms, func(p Platform) bool {
		return (p.OS == "" || n.OS == "" || strings.EqualFold(p.OS, n.OS)) &&
			(p.Arch == "" || n.Arch == "" || strings.EqualFold(constraint.Arch(p.Arch), constraint.Arch(n.Arch)))
	})
}

// String is a plugin as people read it: volume plugin rexray.
func (p *Plugin) String() string { return strings.ToLower(p.Type) + " plugin " + p.Name }

// Package constraint parses and evaluates placement constraints such as node.labels.zone==eu: the grammar, the keys
// and the error texts are Docker Swarm's (swarmkit manager/constraint).
//
// It owns nothing and does no I/O. An unknown key is not an error: as in Swarm it matches no node, so that a typo
// shows as "scheduling constraints not satisfied" and never as a task in the wrong place.
package constraint

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Node is what a constraint can look at.
type Node struct {
	ID           string
	Hostname     string
	Addr         string // advertise address, an IP without port
	Role         string // "manager" or "worker"
	OS           string
	Arch         string
	Labels       map[string]string
	EngineLabels map[string]string
}

type field uint8

const (
	fieldUnknown field = iota
	fieldID
	fieldHostname
	fieldIP
	fieldRole
	fieldOS
	fieldArch
	fieldLabel
	fieldEngineLabel
)

// Constraint is one compiled expression.
type Constraint struct {
	Key    string // as written
	Negate bool   // != instead of ==
	Value  string // as written

	field  field
	label  string
	prefix netip.Prefix // of node.ip; a single address is a full-length prefix
}

var (
	keyPattern   = regexp.MustCompile(`^(?i)[a-z_][a-z0-9\-_.]+$`)
	valuePattern = regexp.MustCompile(`^(?i)[a-z0-9:\-_\s\.\*\(\)\?\+\[\]\\\^\$\|\/]+$`)
)

const (
	nodeLabel   = "node.labels."
	engineLabel = "engine.labels."
)

// Parse compiles a list of expressions, all of which must hold. The first malformed one is the error.
func Parse(exprs []string) ([]Constraint, error) {
	out := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		c, err := parseOne(e)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func parseOne(e string) (Constraint, error) {
	// "==" is looked for first, wherever it stands, as Swarm does: "a!=b==c" is the invalid key "a!=b".
	key, value, ok := strings.Cut(e, "==")
	negate := false
	if !ok {
		if key, value, ok = strings.Cut(e, "!="); !ok {
			return Constraint{}, fmt.Errorf("constraint expected one operator from ==, !=")
		}
		negate = true
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !keyPattern.MatchString(key) {
		return Constraint{}, fmt.Errorf("key '%s' is invalid", key)
	}
	if !valuePattern.MatchString(value) {
		return Constraint{}, fmt.Errorf("value '%s' is invalid", value)
	}
	c := Constraint{Key: key, Negate: negate, Value: value}
	c.field, c.label = fieldOf(key)
	if c.field == fieldIP {
		if c.prefix, ok = parsePrefix(value); !ok {
			c.field = fieldUnknown // a malformed address matches no node, with either operator
		}
	}
	return c, nil
}

func fieldOf(key string) (field, string) {
	// Key names fold case, label names do not.
	switch {
	case strings.EqualFold(key, "node.id"):
		return fieldID, ""
	case strings.EqualFold(key, "node.hostname"):
		return fieldHostname, ""
	case strings.EqualFold(key, "node.ip"):
		return fieldIP, ""
	case strings.EqualFold(key, "node.role"):
		return fieldRole, ""
	case strings.EqualFold(key, "node.platform.os"):
		return fieldOS, ""
	case strings.EqualFold(key, "node.platform.arch"):
		return fieldArch, ""
	case len(key) > len(nodeLabel) && strings.EqualFold(key[:len(nodeLabel)], nodeLabel):
		return fieldLabel, key[len(nodeLabel):]
	case len(key) > len(engineLabel) && strings.EqualFold(key[:len(engineLabel)], engineLabel):
		return fieldEngineLabel, key[len(engineLabel):]
	}
	return fieldUnknown, ""
}

func parsePrefix(v string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(v); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(v)
	return p.Masked(), err == nil
}

// String is the expression in canonical form.
func (c Constraint) String() string {
	if c.Negate {
		return c.Key + "!=" + c.Value
	}
	return c.Key + "==" + c.Value
}

// Match reports whether n satisfies c. A missing label fails == and passes !=.
func (c *Constraint) Match(n *Node) bool {
	var got string
	switch c.field {
	case fieldID:
		got = n.ID
	case fieldHostname:
		got = n.Hostname
	case fieldRole:
		got = n.Role
	case fieldOS:
		got = n.OS
	case fieldArch:
		return strings.EqualFold(Arch(n.Arch), Arch(c.Value)) != c.Negate
	case fieldLabel:
		got = n.Labels[c.label]
	case fieldEngineLabel:
		got = n.EngineLabels[c.label]
	case fieldIP:
		a, err := netip.ParseAddr(n.Addr)
		return (err == nil && c.prefix.Contains(a.Unmap())) != c.Negate
	default:
		return false
	}
	return strings.EqualFold(got, c.Value) != c.Negate
}

// MatchAll reports whether n satisfies every one of cs.
func MatchAll(cs []Constraint, n *Node) bool {
	for i := range cs {
		if !cs[i].Match(n) {
			return false
		}
	}
	return true
}

// Arch brings the names of one architecture together (x86_64 and amd64, aarch64 and arm64): kernels say one,
// images the other, and Docker's users write either.
func Arch(a string) string {
	switch {
	case strings.EqualFold(a, "x86_64"):
		return "amd64"
	case strings.EqualFold(a, "aarch64"):
		return "arm64"
	}
	return a
}

// Package constraint parses and evaluates placement constraints such as node.labels.zone==eu: the grammar, the keys
// and the error texts are Docker Swarm's (swarmkit manager/constraint). It takes more than Swarm's: any label that a node
// may have can be matched, those without a value too (node.labels.jobs==).
//
// It owns nothing and does no I/O. To Parse an unknown key is not an error: as in Swarm it matches no node, so that one that
// was stored puts no task in the wrong place. Check refuses it where a constraint is set.
package constraint

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"skep.dev/libs/typo"
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
	keyPattern = regexp.MustCompile(`^(?i)[a-z_][a-z0-9\-_.]+$`)
	// labelPattern is the name of a label, labelKey of one with what it is a label of.
	labelPattern = regexp.MustCompile(`^[\p{L}\p{N}\-_./:@]+$`)
	labelKey     = regexp.MustCompile(`^(?i)(?:node|engine)\.labels\.[\p{L}\p{N}\-_./:@]+$`)
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
	// The first operator counts: names hold neither, values may hold both.
	at := strings.IndexByte(e, '=')
	if at < 1 {
		return Constraint{}, errNoOperator
	}
	key, negate := strings.CutSuffix(e[:at], "!")
	value, equals := strings.CutPrefix(e[at+1:], "=")
	switch {
	case negate:
		value = e[at+1:]
	case !equals:
		return Constraint{}, errNoOperator
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	label := labelKey.MatchString(key)
	if !label && !keyPattern.MatchString(key) {
		return Constraint{}, fmt.Errorf("key '%s' is invalid", key)
	}
	if label && CheckLabelValue(value) != nil || !label && !valuePattern.MatchString(value) {
		return Constraint{}, fmt.Errorf("value '%s' is invalid", value)
	}
	c := Constraint{Key: key, Negate: negate, Value: value}
	c.field, c.label = fieldOf(key)
	if c.field == fieldIP {
		var ok bool
		if c.prefix, ok = parsePrefix(value); !ok {
			c.field = fieldUnknown // a malformed address matches no node, with either operator
		}
	}
	return c, nil
}

var errNoOperator = errors.New("constraint expected one operator from ==, !=")

// keys are those without a name of a label.
var keys = []string{"node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch"}

// Check refuses constraints that no node can ever satisfy: what Parse refuses, unknown keys, and values that no node has.
func Check(exprs []string) error {
	list, err := Parse(exprs)
	if err != nil {
		return err
	}
	for i := range list {
		switch c := &list[i]; {
		case c.field == fieldUnknown && strings.EqualFold(c.Key, "node.ip"):
			return fmt.Errorf("value '%s' is invalid: node.ip is compared with an address or a prefix, such as 10.1.0.0/16", c.Value)
		case c.field == fieldUnknown:
			return fmt.Errorf("key '%s' is unknown%s: use %s, node.labels.NAME or engine.labels.NAME", c.Key, meant(c.Key), strings.Join(keys, ", "))
		case c.field == fieldRole && !strings.EqualFold(c.Value, "manager") && !strings.EqualFold(c.Value, "worker"):
			return fmt.Errorf("value '%s' is invalid: node.role is manager or worker", c.Value)
		}
	}
	return nil
}

// meant guesses what an unknown key was to be.
func meant(key string) string {
	low := strings.ToLower(key)
	for _, k := range keys {
		if typo.Distance(low, k, 2) <= 2 || "node."+low == k {
			return fmt.Sprintf(" (did you mean %s?)", k)
		}
	}
	for _, p := range []string{"node.label.", "labels.", "label."} {
		if name, ok := strings.CutPrefix(low, p); ok && name != "" {
			return fmt.Sprintf(" (did you mean node.labels.%s?)", key[len(p):])
		}
	}
	if !strings.Contains(key, ".") {
		return fmt.Sprintf(" (did you mean node.labels.%s?)", key)
	}
	return ""
}

// CheckLabel refuses a label of a node that no constraint could match.
func CheckLabel(key, value string) error {
	if !labelPattern.MatchString(key) {
		return fmt.Errorf("label '%s': no constraint could match it: use letters, digits and - _ . / : @", key)
	}
	if err := CheckLabelValue(value); err != nil {
		return fmt.Errorf("label '%s': no constraint could match its value: %w", key, err)
	}
	return nil
}

// CheckLabelValue refuses a value of a label that no constraint could match.
func CheckLabelValue(v string) error {
	switch {
	case strings.TrimSpace(v) != v:
		return fmt.Errorf("%q begins or ends with a blank", v)
	case !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl):
		return fmt.Errorf("%q holds characters that are not printed", v)
	}
	return nil
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
		return matchLabel(n.Labels, c)
	case fieldEngineLabel:
		return matchLabel(n.EngineLabels, c)
	case fieldIP:
		a, err := netip.ParseAddr(n.Addr)
		return (err == nil && c.prefix.Contains(a.Unmap())) != c.Negate
	default:
		return false
	}
	return strings.EqualFold(got, c.Value) != c.Negate
}

func matchLabel(labels map[string]string, c *Constraint) bool {
	got, has := labels[c.label]
	return (has && strings.EqualFold(got, c.Value)) != c.Negate
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

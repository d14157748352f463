// Package taskname fills in the templates of a task's names: its host name, its environment, its volumes
// ({{.Task.Slot}}, swarm.md 4.4). The node does it for the task that runs there, the scheduler for volumes that only one
// node may write: both must come to the same name.
package taskname

import (
	"errors"
	"fmt"
	"strings"
	"text/template/parse"

	skepv1 "skep.dev/proto/skep/v1"
)

// Names is what a template may ask for (swarm.md 4.4).
type Names struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ Architecture, OS string }
	}
	Task struct{ ID, Name, Slot string }
}

// Of fills Names for a task on a node.
func Of(nodeID, nodeHostname, arch string, rec *skepv1.TaskRecord, svc *skepv1.ServiceSpec) Names {
	var n Names
	n.Service.ID, n.Service.Name, n.Service.Labels = rec.GetServiceId(), svc.GetName(), svc.GetLabels()
	n.Node.ID, n.Node.Hostname = nodeID, nodeHostname
	n.Node.Platform.Architecture, n.Node.Platform.OS = arch, "linux"
	n.Task.ID = rec.GetId()
	n.Task.Slot = nodeID
	if rec.GetSlot() > 0 {
		n.Task.Slot = fmt.Sprint(rec.GetSlot())
	}
	n.Task.Name = svc.GetName() + "." + n.Task.Slot + "." + rec.GetId()
	return n
}

// Expand evaluates a template; a text without one costs nothing.
func (n Names) Expand(text string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := parsed(text)
	if err != nil {
		return "", fmt.Errorf("template %q: %w", text, err)
	}
	out, err := t.Execute(n)
	if err != nil {
		return "", fmt.Errorf("template %q: %s", text, saying(err))
	}
	return out, nil
}

// Hostname is the container's: the template, or the task id's first 12 characters as docker does with a container's.
func (n Names) Hostname(tmpl string) (string, error) {
	h, err := n.Expand(tmpl)
	if err != nil {
		return "", fmt.Errorf("hostname: %w", err)
	}
	if h == "" {
		h = n.Task.ID[:min(12, len(n.Task.ID))]
	}
	if len(h) > 63 && !strings.Contains(h, ".") || len(h) > 64 {
		return "", fmt.Errorf("hostname %q is longer than the kernel's 64 characters", h)
	}
	return h, nil
}

// Plain refuses a template that is more than words and fields, so that a manager can fill it in for every task without a
// thought of what that costs. ofNode: it asks for something of the node, which only a task with a node has.
func Plain(text string) (ofNode bool, err error) {
	if !strings.Contains(text, "{{") {
		return false, nil
	}
	t, err := parsed(text)
	if err != nil {
		return false, fmt.Errorf("template %q: %w", text, err)
	}
	if len(t.Nodes()) == 0 {
		return false, fmt.Errorf("template %q: %w", text, errNotPlain)
	}
	for _, n := range t.Nodes() {
		switch n := n.(type) {
		case *parse.TextNode, *parse.CommentNode:
			continue
		case *parse.ActionNode:
			if len(n.Pipe.Decl) == 0 && len(n.Pipe.Cmds) == 1 && plain(n.Pipe.Cmds[0], &ofNode) {
				continue
			}
		}
		return false, fmt.Errorf("template %q: %w", text, errNotPlain)
	}
	return ofNode, nil
}

var errNotPlain = errors.New(`only fields ({{.Task.Slot}}), labels ({{index .Service.Labels "x"}}) and join may stand in the name of a volume`)

// plain: a field alone, or join or index of fields and strings.
func plain(c *parse.CommandNode, ofNode *bool) bool {
	for i, a := range c.Args {
		switch a := a.(type) {
		case *parse.FieldNode:
			*ofNode = *ofNode || a.Ident[0] == "Node"
		case *parse.StringNode:
		case *parse.IdentifierNode:
			if i > 0 || a.Ident != "join" && a.Ident != "index" {
				return false
			}
		default:
			return false
		}
	}
	return true
}

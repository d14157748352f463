package ocispec

import (
	"fmt"
	"strings"
	"text/template"

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

// NamesOf fills Names for a task on a node.
func NamesOf(nodeID, nodeHostname, arch string, rec *skepv1.TaskRecord, svc *skepv1.ServiceSpec) Names {
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
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{"join": func(sep string, s ...string) string { return strings.Join(s, sep) }}).Parse(text)
	if err != nil {
		return "", fmt.Errorf("template %q: %w", text, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, n); err != nil {
		return "", fmt.Errorf("template %q: %w", text, err)
	}
	return b.String(), nil
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

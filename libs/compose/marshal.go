package compose

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Marshal prints the files as one: merged, with every variable filled in, env files read into environment, and paths
// absolute. It holds no value of a secret. Load of it, under the same name, makes the same StackSpec.
func Marshal(s *Stack) ([]byte, error) {
	if s == nil || s.model == nil {
		return nil, fmt.Errorf("printing a stack: it was not made by Load")
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(escaped(s.model)); err != nil {
		return nil, fmt.Errorf("printing stack %s: %w", s.Spec.GetName(), err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("printing stack %s: %w", s.Spec.GetName(), err)
	}
	return out.Bytes(), nil
}

// escaped doubles every $, which is no variable any more.
func escaped(v any) any {
	switch v := v.(type) {
	case string:
		v = strings.ReplaceAll(v, "$", "$$")
		if strings.Contains(v, "\n") && strings.TrimLeft(v, " \t\n") != v {
			// As a block it would lose the blanks that it begins with.
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v, Style: yaml.DoubleQuotedStyle}
		}
		return v
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = escaped(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = escaped(e)
		}
		return out
	}
	return v
}

// printed makes the model what Marshal prints, once everything was read.
func (s *stack) printed() {
	m := s.out.model
	delete(m, "name")
	services, _ := m["services"].(map[string]any)
	for name := range services {
		if _, on := s.project.Services[name]; !on {
			delete(services, name)
		}
	}
	for _, one := range s.services {
		in, ok := services[one.name].(map[string]any)
		if !ok {
			continue
		}
		delete(in, "env_file")
		delete(in, "label_file")
		delete(in, "profiles")
		delete(in, "extends")
		if env := one.out.Task.Container.Env; len(env) > 0 {
			list := make([]any, 0, len(env))
			for _, e := range env {
				list = append(list, e)
			}
			in["environment"] = list
		}
		if check, _ := in["healthcheck"].(map[string]any); check["disable"] == true {
			delete(check, "test") // a later file took it away
		}
		if labels := one.containerLabelsPrinted(); len(labels) > 0 {
			in["labels"] = labels
		}
		if ports := one.out.GetEndpoint().GetPorts(); len(ports) > 0 {
			in["ports"] = printedPorts(ports)
		}
		mounts, _ := in["volumes"].([]any)
		for _, m := range mounts {
			if bind, ok := rawAt(m.(map[string]any), "bind").(map[string]any); ok {
				delete(bind, "create_host_path") // the short form has it, and it has no effect
			}
		}
	}
	for _, section := range []string{"networks", "volumes", "secrets", "configs"} {
		decls, _ := m[section].(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(decls)) {
			decl, ok := decls[key].(map[string]any)
			if !ok {
				continue
			}
			delete(decl, "x-#value")
			if decl["environment"] != nil {
				delete(decl, "content") // put there from the variable
			}
			if external, _ := decl["external"].(bool); !external {
				if given, _ := decl["name"].(string); given != "" && s.ownName(key, given) == s.full(key) {
					delete(decl, "name")
				}
			}
		}
	}
}

// printedPorts are ports in their long form: ranges written out, and without those that a later file replaced.
func printedPorts(ports []*skepv1.PortConfig) []any {
	var out []any
	for _, p := range ports {
		m := map[string]any{"target": int(p.TargetPort), "protocol": p.Protocol, "mode": spec.Word(p.PublishMode)}
		if p.PublishedPort != 0 {
			m["published"] = fmt.Sprint(p.PublishedPort)
		}
		if p.HostIp != "" {
			m["host_ip"] = p.HostIp
		}
		if p.Name != "" {
			m["name"] = p.Name
		}
		out = append(out, m)
	}
	return out
}

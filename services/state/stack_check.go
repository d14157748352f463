package state

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/printable"
	"skep.dev/libs/spec"
	"skep.dev/libs/stack"
	skepv1 "skep.dev/proto/skep/v1"
)

// How large a stack may be. All of it is one stored value, and one answer.
const (
	maxStackServices = 250
	maxStackNetworks = 100
	maxStackFiles    = 500
	maxStackVolumes  = 1000
	maxStackMembers  = 2000 // with what was left behind
)

// checkStack fills in and checks what can be looked at without the cluster's objects.
func checkStack(want *skepv1.StackSpec, c *skepv1.ClusterSpec) error {
	if want == nil {
		return fault.Invalid("stack spec is missing")
	}
	if err := checkStackName(want.Name); err != nil {
		return err
	}
	for _, n := range []struct {
		what      string
		has, most int
	}{{"services", len(want.Services), maxStackServices}, {"networks", len(want.Networks), maxStackNetworks},
		{"secrets and configs", len(want.Secrets) + len(want.Configs), maxStackFiles}, {"volumes", len(want.Volumes), maxStackVolumes}} {
		if n.has > n.most {
			return fault.Invalid("stack %s has %d %s: at most %d; divide it into several stacks", want.Name, n.has, n.what, n.most)
		}
	}
	switch want.ResolveImage {
	case "":
		want.ResolveImage = resolveAlways
	case resolveAlways, resolveChanged, resolveNever:
	default:
		return fault.Invalid("invalid resolve-image value '%s': use always, changed or never", want.ResolveImage)
	}
	if err := checkStackParts(want, c); err != nil {
		return err
	}
	if n := proto.Size(want); n > maxObject {
		return fault.Invalid("stack %s is %d bytes: at most %d fit; divide it into several stacks", want.Name, n, maxObject)
	}
	return nil
}

func checkStackName(name string) error {
	if strings.TrimSpace(name) == "" {
		return fault.Invalid("the stack has no name: give one")
	}
	if err := spec.ValidateName(name); err != nil {
		return fault.Invalid("invalid stack name %q: use letters, digits, hyphens and underscores, at most 63", printable.Cut(name, maxWord))
	}
	return nil
}

func checkStackParts(want *skepv1.StackSpec, c *skepv1.ClusterSpec) error {
	names := map[string]bool{}
	once := func(kind, name string) error {
		k := kind + " " + strings.ToLower(name)
		if names[k] {
			return fault.Invalid("stack %s has %s %s twice", want.Name, kind, name)
		}
		names[k] = true
		return nil
	}
	for _, s := range want.Services {
		if s.GetName() == "" {
			return fault.Invalid("stack %s has a service without a name", want.Name)
		}
		if err := prepare(s); err != nil {
			return fmt.Errorf("service %s: %w", printable.Cut(s.Name, maxWord), err)
		}
		if err := mark(&s.Labels, want.Name, "service "+s.Name); err != nil {
			return err
		}
		if err := once(stack.Service, s.Name); err != nil {
			return err
		}
	}
	for _, n := range want.Networks {
		if err := spec.ValidateNetwork(n, c); err != nil {
			return fmt.Errorf("network %s: %w", printable.Cut(n.GetName(), maxWord), err)
		}
		spec.NetworkDefaults(n)
		if err := mark(&n.Labels, want.Name, "network "+n.Name); err != nil {
			return err
		}
		if err := once(stack.Network, n.Name); err != nil {
			return err
		}
	}
	for _, l := range fileLists(want) {
		for _, f := range l.files {
			if err := spec.CheckSecret(l.kind, &skepv1.SecretSpec{Name: f.GetName(), Labels: f.GetLabels(), TemplateDriver: f.GetTemplateDriver()}); err != nil {
				return fmt.Errorf("%s %s: %w", spec.KindWord(l.kind), printable.Cut(f.GetName(), maxWord), err)
			}
			if err := once(spec.KindWord(l.kind), f.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// mark puts the stack's label on a part of it.
func mark(labels *map[string]string, name, what string) error {
	switch v := (*labels)[stack.Label]; v {
	case name:
		return nil
	case "":
	default:
		return fault.Invalid("%s has label %s=%s: it is of stack %s", what, stack.Label, printable.Cut(v, maxWord), name)
	}
	if *labels == nil {
		*labels = map[string]string{}
	}
	(*labels)[stack.Label] = name
	return nil
}

type fileList struct {
	kind  skepv1.SecretKind
	files []*skepv1.StackFile
}

func fileLists(s *skepv1.StackSpec) []fileList {
	return []fileList{{skepv1.SecretKind_SECRET_KIND_SECRET, s.GetSecrets()}, {skepv1.SecretKind_SECRET_KIND_CONFIG, s.GetConfigs()}}
}

// stackReferences refuses what a stack refers to and the cluster does not have, and writes every name as its object has it.
func (s *Service) stackReferences(ctx context.Context, want *skepv1.StackSpec) error {
	networks, services := map[string]string{}, map[string]*skepv1.ServiceSpec{}
	for _, n := range want.Networks {
		networks[strings.ToLower(n.Name)] = n.Name
	}
	for _, sp := range want.Services {
		services[strings.ToLower(sp.Name)] = sp
	}
	for _, sp := range want.Services {
		for _, n := range sp.Task.Networks {
			if own, ok := networks[strings.ToLower(n.Target)]; ok {
				n.Target = own
				continue
			}
			id, err := s.serviceNetwork(ctx, n.Target)
			if err != nil {
				return fmt.Errorf("service %s: %w: create it first, or have the stack make it", sp.Name, err)
			}
			n.Target = s.networkCalled(id, nil)
		}
		for _, d := range sp.DependsOn {
			on := services[strings.ToLower(d.Service)]
			if on == nil {
				id, err := s.findService(ctx, d.Service)
				if err != nil {
					return fmt.Errorf("service %s depends on %s: %w", sp.Name, d.Service, err)
				}
				if o := s.ix.Service(id); o != nil {
					on = o.Spec
				}
			}
			if on == nil {
				continue // gone in this moment
			}
			if d.Condition == skepv1.Dependency_CONDITION_COMPLETED && !spec.IsJob(on) {
				return fault.Invalid("service %s cannot wait for %s to complete: it is not a job; use started or healthy", sp.Name, on.Name)
			}
			d.Service = on.Name
		}
	}
	return nil
}

// stackFiles has the vault look at every secret and config that the stack has or refers to. Those of its own must be in the
// vault already (but for a dry run), as members or with the stack's label.
func (s *Service) stackFiles(ctx context.Context, want *skepv1.StackSpec, cur *skepv1.Stack, dryRun bool) error {
	q := &skepv1.ResolveFilesRequest{}
	lists := []*[]*skepv1.FileReference{&q.Secrets, &q.Configs}
	var back [2][]*skepv1.FileReference // the references that are asked for, in order; nil for the stack's own
	auths := map[string]bool{}
	for i, l := range fileLists(want) {
		own := map[string]bool{}
		var foreign []string
		for _, f := range l.files {
			own[f.Name] = true
			if f.Id == "" && dryRun {
				continue
			}
			if f.Id == "" || f.Version == 0 {
				return fault.Invalid("%s %s of stack %s has no id and version: it is stored before the stack is", spec.KindWord(l.kind), f.Name, want.Name)
			}
			if !dryRun { // else the version is one that is still to be stored
				*lists[i] = append(*lists[i], &skepv1.FileReference{Id: f.Id, Name: f.Name, Version: f.Version})
				back[i] = append(back[i], nil)
			}
			if !isMember(cur, spec.KindWord(l.kind), f.Id) {
				foreign = append(foreign, f.Name)
			}
		}
		if err := s.mayAdopt(ctx, l.kind, foreign, want.Name); err != nil {
			return err
		}
		for _, sp := range want.Services {
			c := sp.GetTask().GetContainer()
			auths[c.GetRegistryAuth()] = true
			for _, f := range [][]*skepv1.FileReference{c.GetSecrets(), c.GetConfigs()}[i] {
				if !own[f.Name] {
					*lists[i], back[i] = append(*lists[i], proto.CloneOf(f)), append(back[i], f)
				}
			}
		}
	}
	delete(auths, "")
	all := slices.Sorted(maps.Keys(auths))
	if len(all) == 0 && len(q.Secrets)+len(q.Configs) > 0 {
		all = []string{""}
	}
	for _, auth := range all {
		q.RegistryAuth = auth
		r, err := api.Call(ctx, s.cfg.NC, api.FilesResolve, q)
		if err != nil {
			return err
		}
		for i, got := range [][]*skepv1.FileReference{r.Secrets, r.Configs} {
			for j, f := range got {
				if j >= len(back[i]) {
					break
				}
				if back[i][j] != nil {
					back[i][j].Name = f.Name
				} else if f.Name != (*lists[i])[j].Name {
					return fault.Invalid("%s is the id of %s, not of %s: it was renamed or replaced; deploy again", f.Id, f.Name, (*lists[i])[j].Name)
				}
			}
		}
		q.Secrets, q.Configs, back = nil, nil, [2][]*skepv1.FileReference{}
	}
	return nil
}

// mayAdopt refuses secrets and configs that another has made: those of a stack have its label.
func (s *Service) mayAdopt(ctx context.Context, kind skepv1.SecretKind, names []string, stackName string) error {
	if len(names) == 0 {
		return nil
	}
	verb := api.SecretList
	if kind == skepv1.SecretKind_SECRET_KIND_CONFIG {
		verb = api.ConfigList
	}
	page := &skepv1.Page{}
	for {
		r, err := api.Call(ctx, s.cfg.NC, verb, &skepv1.ListSecretsRequest{Filters: []*skepv1.Filter{{Key: "names", Values: names}}, Page: page})
		if err != nil {
			return err
		}
		for _, o := range r.Secrets {
			if o.GetSpec().GetLabels()[stack.Label] != stackName {
				return fault.Conflict("%s %s exists and is not of stack %s: declare it external, or name another", spec.KindWord(kind), o.GetSpec().GetName(), stackName)
			}
		}
		if r.Next == "" {
			return nil
		}
		page.After = r.Next
	}
}

func isMember(st *skepv1.Stack, kind, id string) bool {
	return slices.ContainsFunc(st.GetMembers(), func(m *skepv1.StackMember) bool { return m.Kind == kind && m.Id == id })
}

// stacksApart refuses names that another stack has, or is about to have.
func (s *Service) stacksApart(want *skepv1.StackSpec, self string) error {
	names := map[string]string{}
	for _, sp := range want.Services {
		names[stack.Service+" "+strings.ToLower(sp.Name)] = sp.Name
	}
	for _, n := range want.Networks {
		names[stack.Network+" "+strings.ToLower(n.Name)] = n.Name
	}
	for _, l := range fileLists(want) {
		for _, f := range l.files {
			names[spec.KindWord(l.kind)+" "+strings.ToLower(f.Name)] = f.Name
		}
	}
	for _, other := range s.ix.Stacks() {
		st := s.ix.Stack(other.ID)
		if other.ID == self || st == nil {
			continue
		}
		taken := st.Members
		if st.State == skepv1.StackState_STACK_STATE_DEPLOYING {
			rev := s.ix.StackRevision(other.ID, st.Revision).GetSpec()
			for _, sp := range rev.GetServices() {
				taken = append(taken, &skepv1.StackMember{Kind: stack.Service, Name: sp.Name})
			}
			for _, n := range rev.GetNetworks() {
				taken = append(taken, &skepv1.StackMember{Kind: stack.Network, Name: n.Name})
			}
		}
		for _, m := range taken {
			if name, both := names[m.Kind+" "+strings.ToLower(m.Name)]; both {
				return fault.Conflict("%s %s is of stack %s: no two stacks have one; declare it external in one of them, or name another", m.Kind, name, other.Name)
			}
		}
	}
	return nil
}

// stackPorts refuses ports that two services of the stack want, that the cluster lives by, or that a service has which the
// plan does not move.
func (s *Service) stackPorts(want *skepv1.StackSpec, ops []*stack.Op) error {
	own := s.ownPorts()
	moves := map[string]bool{} // ids of services whose ports are what the plan says
	for _, o := range ops {
		if o.Kind == stack.Service && o.Verb != skepv1.StackChange_VERB_LEAVE {
			moves[o.ID] = true
		}
	}
	taken := map[string]string{} // who has a port on the mesh, or "host" for one on the nodes
	for _, sp := range want.Services {
		ports := sp.GetEndpoint().GetPorts()
		if len(ports) > maxPorts {
			return fault.Invalid("service %s: %d published ports: at most %d for one service", sp.Name, len(ports), maxPorts)
		}
		if n := len(spec.Overlays(sp)); n > maxNetworks {
			return fault.Invalid("service %s would be on %d networks: at most %d for one service", sp.Name, n, maxNetworks)
		}
		for _, p := range ports {
			if p.PublishedPort == 0 {
				continue
			}
			key := keys.PortKey(p.Protocol, p.PublishedPort)
			host := p.PublishMode == skepv1.PublishMode_PUBLISH_MODE_HOST
			if other, ok := taken[key]; ok && other != sp.Name && !(host && other == "host") {
				if other == "host" {
					other = "another"
				}
				return fault.Conflict("services %s and %s of stack %s both publish port %d/%s", other, sp.Name, want.Name, p.PublishedPort, p.Protocol)
			}
			if taken[key] = sp.Name; host {
				taken[key] = "host"
			}
			if err := own.refuse(p); err != nil {
				return fmt.Errorf("service %s: %w", sp.Name, err)
			}
			k, _ := s.ix.Key(key)
			h := parseHolder(k.Value)
			switch {
			case h.ingress != "" && !moves[h.ingress]:
				return fmt.Errorf("service %s: %w", sp.Name, s.portTaken(p.PublishedPort, h.ingress, "as an ingress port"))
			case !host && slices.ContainsFunc(h.hosts, func(id string) bool { return !moves[id] }):
				return fmt.Errorf("service %s: %w", sp.Name, s.portTaken(p.PublishedPort, h.hosts[0], "as a host-published port"))
			}
		}
	}
	return nil
}

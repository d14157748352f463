package state

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/rpc"
	"skep.dev/libs/spec"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/state/internal/index"
)

// networkNotFound is Docker's text; all (nil: none) are the names to suggest one of.
func networkNotFound(ref string, all []index.Named) error {
	if s := suggest(ref, all); s != "" {
		return fault.NotFound("network %s not found; did you mean %s?", ref, s)
	}
	return fault.NotFound("network %s not found", ref)
}

// predefined composes the networks that are everywhere and stored nowhere. Their names are their ids.
func (s *Service) predefined(word string) *skepv1.Network {
	n := &skepv1.Network{
		Meta: &skepv1.Meta{Id: word}, Spec: &skepv1.NetworkSpec{Name: word, Driver: word}, Scope: "local",
		Services: s.ix.NetworkUserCount(word),
	}
	switch word {
	case spec.NetworkNone:
		n.Spec.Driver = "null"
	case spec.NetworkIngress:
		n.Spec.Driver, n.Scope = spec.DriverOverlay, "swarm"
	}
	if c := s.ix.Cluster(); c != nil {
		n.Meta.CreatedAt, n.Meta.UpdatedAt = c.Meta.CreatedAt, c.Meta.CreatedAt
	}
	return n
}

var predefinedWords = []string{spec.NetworkBridge, spec.NetworkHost, spec.NetworkIngress, spec.NetworkNone}

// viewNetwork composes what a client sees, nil when there is no such network.
func (s *Service) viewNetwork(id string) *skepv1.Network {
	if word := spec.Predefined(id); word != "" {
		return s.predefined(word)
	}
	n := s.ix.Network(id)
	if n == nil {
		return nil
	}
	n.Scope, n.Services = "swarm", s.ix.NetworkUserCount(id)
	return n
}

// networkID finds a network by id, name or unique beginning of its id.
func (s *Service) networkID(ref string) (string, error) {
	if ref == "" {
		return "", fault.Invalid("network: give a name or an id")
	}
	if _, ok := s.ix.NetworkState(ref); ok {
		return ref, nil
	}
	if word := spec.Predefined(ref); word != "" {
		return word, nil
	}
	if id, ok := s.ix.NetworkByName(ref); ok {
		return id, nil
	}
	all := s.ix.Networks()
	hit, err := byPrefix("network", ref, all)
	if fault.Is(err, fault.CodeNotFound) {
		for _, w := range predefinedWords {
			all = append(all, index.Named{ID: w, Name: w})
		}
		return "", networkNotFound(ref, all)
	}
	return hit, err
}

// findNetwork is networkID, looking twice before it says no.
func (s *Service) findNetwork(ctx context.Context, ref string) (id string, err error) {
	err = s.lookTwice(ctx, func() (err error) { id, err = s.networkID(ref); return err }, subject.Spec)
	return id, err
}

func (s *Service) createNetwork(ctx context.Context, r *skepv1.CreateNetworkRequest) (*skepv1.NetworkReply, error) {
	nid := rpc.MarkOf(ctx).NewID()
	if n, err := earlier(ctx, s, keys.Network, nid, "network", s.viewNetwork); n != nil || err != nil {
		return &skepv1.NetworkReply{Network: n}, err
	}
	return s.makeNetwork(ctx, nid, r.Spec, r.DryRun, nil)
}

// makeNetwork checks a network's spec and stores a network of that id, with what else is written then.
func (s *Service) makeNetwork(ctx context.Context, nid string, want *skepv1.NetworkSpec, dryRun bool, with also) (*skepv1.NetworkReply, error) {
	c := s.ix.Cluster()
	if err := spec.ValidateNetwork(want, c.GetSpec()); err != nil {
		return nil, err
	}
	spec.NetworkDefaults(want)
	if size := proto.Size(want); size > maxObject {
		return nil, fault.Invalid("the network spec is %d bytes: at most %d fit", size, maxObject)
	}
	if c == nil {
		return nil, errNoCluster()
	}
	if !dryRun {
		// Here they would only take the same number from one another.
		s.networkMu.Lock()
		defer s.networkMu.Unlock()
	}
	now := timestamppb.Now()
	n := &skepv1.Network{Meta: &skepv1.Meta{Id: nid, CreatedAt: now, UpdatedAt: now}, Spec: want}
	tries := 0
	err := s.retry(ctx, func() error {
		if s.ix.Network(n.Meta.Id) != nil {
			return nil // ours, its acknowledgement lost
		}
		taken, err := s.isTaken(ctx, func() bool { other, taken := s.ix.NetworkByName(want.Name); return taken && other != nid })
		if err != nil {
			return err
		}
		if taken {
			return fault.Conflict("network with name %s already exists", want.Name)
		}
		auto, err := s.allocateNetwork(n, c.Spec, tries)
		if err != nil || dryRun {
			return err
		}
		tries++
		body, err := encodeNetwork(n)
		if err != nil {
			return err
		}
		nid := []byte(nid)
		batch := s.spec.Batch()
		batch.Create(keys.Network.Key(n.Meta.Id), body)
		batch.Create(keys.Name(keys.NetworkName, want.Name), nid)
		batch.Create(keys.Number(keys.VNI, n.Vni), nid)
		if spec.Encrypted(n.Spec) {
			batch.Create(keys.Number(keys.Tunnel, spec.EncryptedPort(n.Vni)), nid)
		}
		if auto.IsValid() {
			batch.Create(keys.SubnetKey(auto), nid)
		}
		if err := with.to(batch); err != nil {
			return err
		}
		return s.commit(ctx, batch, func() bool { return s.ix.Network(n.Meta.Id) != nil })
	})
	if err != nil {
		return nil, err
	}
	warnings := s.networkWarnings(n)
	if dryRun {
		n.Scope = "swarm"
		return &skepv1.NetworkReply{Network: n, Warnings: warnings}, nil
	}
	s.events.send(ctx, networkEvent(n, "create"))
	if v := s.viewNetwork(n.Meta.Id); v != nil {
		n = v
	}
	return &skepv1.NetworkReply{Network: n, Warnings: warnings}, nil
}

func networkEvent(n *skepv1.Network, verb string) *skepv1.Event {
	return &skepv1.Event{
		Kind: "network", Id: n.Meta.Id, Name: n.Spec.Name, Verb: verb,
		Attributes: map[string]string{"name": n.Spec.Name, "type": n.Spec.Driver},
	}
}

func encodeNetwork(n *skepv1.Network) ([]byte, error) {
	c := proto.CloneOf(n)
	c.Meta.Version, c.Scope, c.Services = 0, "", 0
	body, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode network %s: %w", n.Meta.Id, err)
	}
	return body, nil
}

// allocateNetwork gives a network what its spec leaves open, its VXLAN id and its subnets, and returns the subnet that
// is nobody's choice. It looks the further afield the more often others were faster.
func (s *Service) allocateNetwork(n *skepv1.Network, c *skepv1.ClusterSpec, tries int) (auto netip.Prefix, err error) {
	if n.Vni, err = s.allocateVNI(n, spread(tries)); err != nil {
		return auto, err
	}
	v4, v6 := spec.NetworkIPAM(n.Spec.Ipam)
	if v4 == nil {
		if auto, err = s.autoSubnet(c, spread(tries)); err != nil {
			return auto, err
		}
		v4 = &skepv1.IPAMConfig{Subnet: auto.String()}
	}
	n.Ipam = []*skepv1.IPAMConfig{proto.CloneOf(v4)}
	l, err := spec.NetworkLayout(n)
	if err != nil {
		return auto, err
	}
	n.Ipam[0].Gateway = l.Gateway.String()
	if !n.Spec.Ipv6 {
		return auto, nil
	}
	if v6 == nil {
		v6 = &skepv1.IPAMConfig{Subnet: ulaSubnet(n.Meta.Id).String()}
	}
	v6 = proto.CloneOf(v6)
	if v6.Gateway == "" {
		p, err := netip.ParsePrefix(v6.Subnet)
		if err != nil {
			return auto, fault.Invalid("invalid subnet %q: %v", v6.Subnet, err)
		}
		v6.Gateway = p.Addr().Next().String()
	}
	n.Ipam = append(n.Ipam, v6)
	return auto, nil
}

func (s *Service) allocateVNI(n *skepv1.Network, skip int) (uint32, error) {
	asked, err := spec.VXLANID(n.Spec)
	if err != nil {
		return 0, err
	}
	encrypted := spec.Encrypted(n.Spec)
	holder := func(key string) (name string, taken bool) {
		k, taken := s.ix.Key(key)
		if st, ok := s.ix.NetworkState(k.Value); ok {
			return st.Name, taken
		}
		return k.Value, taken
	}
	if asked != 0 {
		if name, taken := holder(keys.Number(keys.VNI, asked)); taken {
			return 0, fault.Conflict("VXLAN id %d is in use by network %s: name another, or none for a free one", asked, name)
		}
		if name, taken := holder(keys.Number(keys.Tunnel, spec.EncryptedPort(asked))); encrypted && taken {
			return 0, fault.Conflict("an encrypted network with VXLAN id %d needs %d/udp of every node, which is in use by network %s: name another, or none for a free one",
				asked, spec.EncryptedPort(asked), name)
		}
		return asked, nil
	}
	if most := spec.LastEncryptedPort - spec.FirstEncryptedPort + 1; encrypted && len(s.ix.Keys(keys.Tunnel.Prefix())) >= most {
		return 0, fault.Exhausted("there are %d encrypted networks, and each has one of the UDP ports %d-%d: remove networks that nobody needs",
			most, spec.FirstEncryptedPort, spec.LastEncryptedPort)
	}
	// The search begins at a place of the network's own: nodes may still be taking down the one that had a low number a moment ago.
	const all = spec.MaxVNI - spec.FirstVNI + 1
	h := fnv.New32a()
	h.Write([]byte(n.Meta.Id))
	for i := range uint32(all) {
		vni := spec.FirstVNI + (h.Sum32()%all+i)%all
		if _, taken := s.ix.Key(keys.Number(keys.VNI, vni)); taken {
			continue
		}
		if _, taken := s.ix.Key(keys.Number(keys.Tunnel, spec.EncryptedPort(vni))); encrypted && taken {
			continue
		}
		if skip == 0 {
			return vni, nil
		}
		skip--
	}
	return 0, fault.Exhausted("all VXLAN ids %d-%d are in use: remove networks that nobody needs", spec.FirstVNI, spec.MaxVNI)
}

// mostWarnings is how many overlaps one answer tells of.
const mostWarnings = 5

// networkWarnings tells what is allowed and may surprise.
func (s *Service) networkWarnings(n *skepv1.Network) (out []string) {
	var own []netip.Prefix
	for _, c := range n.Ipam {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil {
			own = append(own, p)
		}
	}
	for _, o := range s.ix.Subnets() {
		i := slices.IndexFunc(own, o.Prefix.Overlaps)
		if i < 0 || o.Network.ID == n.Meta.Id {
			continue
		}
		out = append(out, fmt.Sprintf("subnet %s of network %s overlaps %s of network %s: no service can be on both", own[i], n.Spec.Name, o.Prefix, o.Network.Name))
		if len(out) == mostWarnings {
			break
		}
	}
	for _, a := range s.ix.NodeAddrs() {
		if i := slices.IndexFunc(own, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
			out = append(out, fmt.Sprintf("subnet %s covers %s, the address of a node: services on network %s cannot reach the nodes' own network", own[i], a, n.Spec.Name))
			break
		}
	}
	return append(out, routeWarnings(n, own, s.ix.Routes())...)
}

// routeWarnings tells of the nodes' routes, each once, to what a network's tasks will take for their own network.
func routeWarnings(n *skepv1.Network, own []netip.Prefix, routes []index.Route) (out []string) {
	nodes := map[netip.Prefix][]string{}
	var order []netip.Prefix
	for _, r := range routes {
		if !slices.ContainsFunc(own, r.Prefix.Overlaps) {
			continue
		}
		if nodes[r.Prefix] == nil {
			order = append(order, r.Prefix)
		}
		nodes[r.Prefix] = append(nodes[r.Prefix], r.Node)
	}
	for _, p := range order {
		if len(out) == mostWarnings {
			break
		}
		i := slices.IndexFunc(own, p.Overlaps)
		who := "node " + nodes[p][0]
		if more := len(nodes[p]) - 1; more > 0 {
			who += fmt.Sprintf(" and %d more", more)
		}
		out = append(out, fmt.Sprintf("subnet %s overlaps the route %s of %s: tasks on network %s do not reach what is behind that route in the subnet; to avoid it give the network a --subnet elsewhere",
			own[i], p, who, n.Spec.Name))
	}
	return out
}

func (s *Service) inspectNetwork(ctx context.Context, r *skepv1.Ref) (*skepv1.NetworkReply, error) {
	id, err := s.findNetwork(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	n := s.viewNetwork(id)
	if n == nil {
		return nil, networkNotFound(r.Ref, nil)
	}
	return &skepv1.NetworkReply{Network: n}, nil
}

func (s *Service) listNetworks(_ context.Context, r *skepv1.ListNetworksRequest) (*skepv1.ListNetworksReply, error) {
	f, err := parseFilters(r.Filters, "id", "name", "driver", "label", "scope", "type", "dangling")
	if err != nil {
		return nil, err
	}
	for key, valid := range map[string][]string{"scope": {"swarm", "local", "global"}, "type": {"builtin", "custom"}, "dangling": {"true", "false", "1", "0"}} {
		if err := f.checkValues(key, valid...); err != nil {
			return nil, err
		}
	}
	all := s.ix.Networks()
	for _, w := range predefinedWords {
		all = append(all, index.Named{ID: w, Name: w})
	}
	slices.SortFunc(all, func(a, b index.Named) int { return strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	out := &skepv1.ListNetworksReply{}
	p := newPage(r.Page)
	for _, named := range all {
		if strings.ToLower(named.Name) <= r.Page.GetAfter() || !f.prefix("id", named.ID) || !f.prefix("name", named.Name) {
			continue
		}
		n := s.viewNetwork(named.ID)
		if n == nil || !f.network(n) {
			continue
		}
		if !p.takes(n) {
			out.Next = strings.ToLower(out.Networks[len(out.Networks)-1].Spec.Name)
			break
		}
		out.Networks = append(out.Networks, n)
	}
	return out, nil
}

// network applies what is left of the filters of a network listing. A predefined network is never dangling.
func (f filters) network(n *skepv1.Network) bool {
	kind, dangling := "custom", []string{"false", "0"}
	if spec.Predefined(n.Meta.Id) != "" {
		kind = "builtin"
	} else if n.Services == 0 {
		dangling = []string{"true", "1"}
	}
	return f.exact("driver", n.Spec.Driver) && f.labels("label", n.Spec.Labels) && f.exact("scope", n.Scope) && f.exact("type", kind) &&
		f.exact("dangling", dangling...)
}

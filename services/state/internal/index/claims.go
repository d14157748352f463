package index

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// applyClaim takes what became of the claim on a volume.
func (x *Index) applyClaim(e kv.Entry) {
	c := &skepv1.VolumeClaim{}
	if e.Deleted || proto.Unmarshal(e.Value, c) != nil {
		delete(x.claims, e.Key)
		return
	}
	x.claims[strings.Clone(e.Key)] = c
}

// ClaimsOf are the claims of a node on volumes with a single writer. They must not be changed.
func (x *Index) ClaimsOf(node string) []*skepv1.VolumeClaim {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []*skepv1.VolumeClaim
	for _, c := range x.claims {
		if c.GetNodeId() == node {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *skepv1.VolumeClaim) int {
		return strings.Compare(a.GetDriver()+"\x00"+a.GetName(), b.GetDriver()+"\x00"+b.GetName())
	})
	return out
}

// ClaimHolder is the node that may write a volume, "" when none has it.
func (x *Index) ClaimHolder(driver, name string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.claims[keys.ClaimKey(spec.VolumeDriver(driver), name)].GetNodeId()
}

// Fenced are the nodes that were cut off.
func (x *Index) Fenced() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	for id := range x.fenced {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// IsFenced reports whether a node was cut off.
func (x *Index) IsFenced(node string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.fenced[node]
}

// GlobalVolumes reports whether a node says that a plug-in's volumes are the same everywhere.
func (x *Index) GlobalVolumes(driver string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, n := range x.nodes {
		if n.rev != 0 && slices.Contains(n.global, driver) {
			return true
		}
	}
	return false
}

// globalPlugins are the volume plug-ins of a node whose volumes are the same everywhere.
func globalPlugins(d *skepv1.NodeDescription) []string {
	var out []string
	for _, p := range d.GetPlugins() {
		if strings.EqualFold(p.GetType(), "Volume") && p.GetScope() == "global" {
			out = append(out, strings.Clone(spec.VolumeDriver(p.GetName())))
		}
	}
	return out
}

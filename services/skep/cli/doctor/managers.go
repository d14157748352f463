package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// stepSlow is how long a change of the group of managers may take before that is told.
const stepSlow = time.Minute

// zoneLabel is the node label that says which machines fail together.
const zoneLabel = "zone"

// managers looks at who keeps the store, and at how many of them can be lost.
func (d *exam) managers() {
	var all []*skepv1.Node
	for _, n := range byName(d.After.Nodes) {
		if n.GetManager() != nil {
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return
	}
	since, reachable, desired := len(d.out), 0, 0
	for _, n := range all {
		if n.GetSpec().GetRole() == skepv1.NodeRole_NODE_ROLE_MANAGER {
			desired++
		}
		if n.Manager.Reachability == "unreachable" {
			name := render.Hostname(n)
			d.add(Error, "manager "+name, "the other managers do not reach it: bring it back, or, if it is lost, remove it with `skep node rm --force %s` and add another", d.ref(n.GetMeta().GetId()))
		}
		if n.Manager.Reachability == "reachable" {
			reachable++
		}
	}
	if desired == 0 {
		desired = len(all) // an older version says it in the nodes' roles alone
	}
	if text := member.Advice(desired); text != "" {
		d.add(Warn, "managers", "%s", text)
	}
	d.witnesses(all)
	d.zones(all)
	d.step()
	d.managerVersions(all)
	d.found(since, "managers", "%d of %d reachable", reachable, len(all))
}

// witnesses warns when so many voters are witnesses that the managers beside them are too few.
func (d *exam) witnesses(all []*skepv1.Node) {
	var names []string
	for _, n := range all {
		if n.Witness {
			names = append(names, render.Hostname(n))
		}
	}
	if serve := len(all) - len(names); len(names) > 0 && serve < 2 {
		d.add(Warn, "managers", "one manager serves beside %s (%s): witnesses only vote, so the cluster is lost with that one machine. Add a manager", count(len(names), "witness"), list(names))
	}
}

// zones warns when the loss of one zone is the loss of the majority. Where no zones are given nothing is known.
func (d *exam) zones(all []*skepv1.Node) {
	if len(all) < 3 {
		return
	}
	in := map[string][]string{}
	for _, n := range all {
		if z := n.GetSpec().GetLabels()[zoneLabel]; z != "" {
			in[z] = append(in[z], render.Hostname(n))
		}
	}
	for _, z := range slices.Sorted(maps.Keys(in)) {
		if names := in[z]; len(names)*2 > len(all) {
			d.add(Warn, "managers", "zone %s has %d of %d managers (%s): if it fails, nothing can be changed until it is back. Have managers in three zones, so that none has a majority", z, len(names), len(all), list(names))
		}
	}
}

// step tells of a change of the group that does not get on.
func (d *exam) step() {
	s := d.Group.GetSet().GetStep()
	if s.GetSince() == nil || s.Action == "" {
		return
	}
	took := d.Now.Sub(s.Since.AsTime())
	if took < stepSlow {
		return
	}
	why := s.WaitsFor
	if why == "" {
		why = "it is not known what for"
	}
	d.add(Warn, "managers", "a change waits for %s (%s %s): %s. Other changes of managers come after it", took.Round(time.Second), s.Action, d.name(s.NodeId), why)
}

// managerVersions tells of managers whose brokers are of different versions.
func (d *exam) managerVersions(all []*skepv1.Node) {
	on := map[string][]string{}
	for _, n := range all {
		if v := n.Manager.Version; v != "" {
			on[v] = append(on[v], render.Hostname(n))
		}
	}
	if len(on) < 2 {
		return
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(on)) {
		parts = append(parts, fmt.Sprintf("%s on %s", v, list(on[v])))
	}
	d.add(Warn, "managers", "they run different versions of skep, %s: finish the upgrade", strings.Join(parts, "; "))
}

package render

import (
	"sort"
	"strings"
	"time"

	"github.com/moby/moby/api/types/volume"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// NaturalCompare orders texts as NaturalLess does.
func NaturalCompare(a, b string) int {
	switch {
	case NaturalLess(a, b):
		return -1
	case NaturalLess(b, a):
		return 1
	}
	return 0
}

func usersOf(v *skepv1.Volume, tasks map[string]string) []string {
	var out []string
	for _, id := range v.TaskIds {
		if name := tasks[id]; name != "" {
			id = name
		}
		out = append(out, id)
	}
	sort.Slice(out, func(i, j int) bool { return NaturalLess(out[i], out[j]) })
	return out
}

// oneRow puts the nodes' words on a volume that is the same everywhere together: the nodes that hold it, or "any".
func oneRow(list []*skepv1.Volume) []*skepv1.Volume {
	var out []*skepv1.Volume
	for _, v := range list {
		if v.Scope == "global" {
			v = proto.CloneOf(v)
			if !v.Mounted && len(v.TaskIds) == 0 {
				v.NodeHostname = "any"
			}
			if n := len(out) - 1; n >= 0 && out[n].Scope == "global" && out[n].Name == v.Name && out[n].Driver == v.Driver {
				at := out[n]
				switch {
				case at.NodeHostname == "any":
					at.NodeHostname = v.NodeHostname
				case v.NodeHostname != "any":
					at.NodeHostname += ", " + v.NodeHostname
				}
				at.TaskIds, at.Mounted = append(at.TaskIds, v.TaskIds...), at.Mounted || v.Mounted
				continue
			}
		}
		out = append(out, v)
	}
	return out
}

// Volumes is `volume ls`: a row for each volume and node, tasks by name.
func Volumes(list []*skepv1.Volume, tasks map[string]string, now time.Time, size bool) *Table {
	t := &Table{Key: "Name", Columns: []Column{{"Driver", "DRIVER"}, {"Name", "VOLUME NAME"}, {"Node", "NODE"}, {"Tasks", "USED BY"}, {"Size", "SIZE"}, {"Scope", "SCOPE"},
		{"Mountpoint", "MOUNTPOINT"}, {"Labels", "LABELS"}, {"Created", "CREATED"}, {"Links", "LINKS"}, {"Mounted", "MOUNTED"}},
		Default: "{{.Driver}}\t{{.Name}}\t{{.Node}}\t{{.Tasks}}"}
	if size {
		t.Default += "\t{{.Size}}"
	}
	for _, v := range oneRow(list) {
		r := Row{"Driver": v.Driver, "Name": v.Name, "Node": v.NodeHostname, "Tasks": dash(strings.Join(usersOf(v, tasks), ", ")), "Size": "-", "Scope": v.Scope,
			"Mountpoint": dash(v.Mountpoint), "Labels": labelList(v.Labels), "Created": "-", "Links": "0", "Mounted": "no"}
		if v.SizeBytes >= 0 {
			r["Size"] = Bytes(v.SizeBytes)
		}
		if v.CreatedAt != nil {
			r["Created"] = Ago(v.CreatedAt.AsTime(), now)
		}
		if v.Mounted {
			r["Mounted"] = "yes"
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}

// dockerVolume is Docker's form of a volume, with what a cluster adds: which node it is on, and which tasks use it.
type dockerVolume struct {
	volume.Volume
	Node  struct{ ID, Hostname string }
	Tasks []string
}

// DockerVolume is Docker's form of a volume.
func DockerVolume(v *skepv1.Volume, tasks map[string]string) any {
	out := dockerVolume{Volume: volume.Volume{Name: v.Name, Driver: v.Driver, Mountpoint: v.Mountpoint, Labels: labels(v.Labels), Options: labels(v.Options), Scope: v.Scope}}
	if v.CreatedAt != nil {
		out.CreatedAt = v.CreatedAt.AsTime().Format(time.RFC3339)
	}
	if len(v.Status) > 0 {
		out.Status = map[string]any{}
		for k, s := range v.Status {
			out.Status[k] = s
		}
	}
	if v.SizeBytes >= 0 {
		out.UsageData = &volume.UsageData{Size: v.SizeBytes, RefCount: int64(len(v.TaskIds))}
	}
	out.Node.ID, out.Node.Hostname = v.NodeId, v.NodeHostname
	out.Tasks = append([]string{}, usersOf(v, tasks)...)
	return out
}

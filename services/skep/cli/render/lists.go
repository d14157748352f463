package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"time"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

// Mode names a service's mode.
func Mode(m *skepv1.ServiceMode) string {
	switch m.GetMode().(type) {
	case *skepv1.ServiceMode_Global:
		return "global"
	case *skepv1.ServiceMode_ReplicatedJob:
		return "replicated job"
	case *skepv1.ServiceMode_GlobalJob:
		return "global job"
	}
	return "replicated"
}

// Replicas is the REPLICAS column.
func Replicas(s *skepv1.Service) string { return replicas(s, "") }

func replicas(s *skepv1.Service, looping string) string {
	st := s.GetStatus()
	out := fmt.Sprintf("%d/%d", st.GetRunning(), st.GetDesired())
	switch m := s.GetSpec().GetMode().GetMode().(type) {
	case *skepv1.ServiceMode_ReplicatedJob:
		out += fmt.Sprintf(" (%d/%d completed)", st.GetCompleted(), m.ReplicatedJob.TotalCompletions)
	case *skepv1.ServiceMode_GlobalJob:
		out += fmt.Sprintf(" (%d/%d completed)", st.GetCompleted(), st.GetDesired()+st.GetCompleted())
	}
	if max := s.GetSpec().GetTask().GetPlacement().GetMaxReplicasPerNode(); max > 0 {
		out += fmt.Sprintf(" (max %d per node)", max)
	}
	if n := st.GetCrashLooping(); n > 0 {
		out += fmt.Sprintf(" (%d crash-looping%s)", n, looping)
	}
	return out
}

// loop tells of the task that fails most: how often, when it is started again and why it failed. "" when none waits.
func loop(s *skepv1.Service, now time.Time, noTrunc bool) string {
	l := s.GetStatus().GetLoop()
	if l.GetFailures() == 0 {
		return ""
	}
	out := fmt.Sprintf(": failed %d times in a row", l.Failures)
	if l.Failures == 1 {
		out = ": failed once"
	}
	if wait := time.UnixMilli(l.NextUnixMs).Sub(now); wait > 0 {
		out += ", next in " + max(wait, time.Second).Round(time.Second).String()
	}
	why := strings.Join(strings.Fields(l.Err), " ")
	if !noTrunc {
		why = plain.Cut(why, 30)
	}
	if why != "" {
		out += `, "` + why + `"`
	}
	return out
}

// Services is `service ls`.
func Services(list []*skepv1.Service, noTrunc bool, now time.Time) *Table {
	sort.SliceStable(list, func(i, j int) bool { return NaturalLess(list[i].GetSpec().GetName(), list[j].GetSpec().GetName()) })
	t := &Table{Key: "ID", Columns: []Column{{"ID", "ID"}, {"Name", "NAME"}, {"Mode", "MODE"}, {"Replicas", "REPLICAS"}, {"Image", "IMAGE"}, {"Ports", "PORTS"}}}
	for _, s := range list {
		id := s.GetMeta().GetId()
		if !noTrunc {
			id = ShortID(id)
		}
		ports := s.GetEndpoint().GetPorts()
		if len(ports) == 0 {
			ports = s.GetSpec().GetEndpoint().GetPorts()
		}
		t.Rows = append(t.Rows, Row{
			"ID": id, "Name": s.GetSpec().GetName(), "Mode": serviceMode(s.GetSpec()), "Replicas": replicas(s, loop(s, now, noTrunc)),
			"Image": Image(s.GetSpec().GetTask().GetContainer().GetImage()), "Ports": Ports(ports),
		})
	}
	return t
}

// Nodes is `node ls`; self is the id of the node the command runs on, if it is one. The column DATA PATH is shown when
// some node does not reach another.
func Nodes(list []*skepv1.Node, self string) *Table {
	sort.SliceStable(list, func(i, j int) bool { return NaturalLess(Hostname(list[i]), Hostname(list[j])) })
	t := &Table{
		Key: "ID", Bools: []string{"Self"},
		Columns: []Column{{"ID", "ID"}, {"Hostname", "HOSTNAME"}, {"Status", "STATUS"}, {"Availability", "AVAILABILITY"},
			{"ManagerStatus", "MANAGER STATUS"}, {"EngineVersion", "ENGINE VERSION"}, {"TLSStatus", "TLS STATUS"}, {"DataPath", "DATA PATH"}, {"Self", "SELF"}},
		Default: `{{if eq (print .Self) "true"}}{{.ID}} *{{else}}{{.ID}}  {{end}}` + "\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}",
	}
	blocked := false
	for _, n := range list {
		t.Rows = append(t.Rows, Row{
			"ID": n.GetMeta().GetId(), "Self": fmt.Sprint(self != "" && n.GetMeta().GetId() == self), "Hostname": Hostname(n),
			"Status": nodeStatus(n), "Availability": Availability(n.GetSpec().GetAvailability()),
			"ManagerStatus": ManagerStatus(n), "EngineVersion": n.GetDescription().GetEngineVersion(), "TLSStatus": "Unknown", // the vault knows
			"DataPath": DataPath(n),
		})
		if len(n.GetStatus().GetBlocked()) > 0 {
			blocked = true
		}
	}
	if blocked {
		t.Default += "\t{{.DataPath}}"
	}
	return t
}

// nodeStatus is a node's state, and whether it was fenced.
func nodeStatus(n *skepv1.Node) string {
	st := NodeStatus(n)
	if n.GetFence() != nil {
		st += " (fenced)"
	}
	return st
}

// DataPath says whether the containers of a node reach those of the others, as its mesh found last: ok, or
// "blocked: w1, w2". It is empty for a node that is not ready.
func DataPath(n *skepv1.Node) string {
	st := n.GetStatus()
	if st.GetState() != skepv1.NodeState_NODE_STATE_READY || n.GetWitness() {
		return ""
	}
	if len(st.GetBlocked()) == 0 {
		return "ok"
	}
	var names []string
	for _, p := range st.Blocked {
		names = append(names, p.GetHostname())
	}
	text := "blocked: " + strings.Join(names, ", ")
	if st.BlockedMore > 0 {
		text += fmt.Sprintf(" and %d more", st.BlockedMore)
	}
	return text
}

// JSONNodes is `node ls --json`: the nodes as the API has them, each with data_path, see DataPath.
func JSONNodes(w io.Writer, list []*skepv1.Node) error {
	out := make([]json.RawMessage, 0, len(list))
	for _, n := range list {
		b, err := protoJSON(n)
		if err != nil {
			return err
		}
		path, err := json.Marshal(DataPath(n))
		if err != nil {
			return err
		}
		end := bytes.LastIndexByte(b, '}') // a node has an id, so the object is not empty
		out = append(out, slices.Concat(b[:end], []byte(`,"data_path":`), path, []byte("}")))
	}
	return indented(w, out)
}

// Hostname is a node's name for people.
func Hostname(n *skepv1.Node) string {
	if h := n.GetDescription().GetHostname(); h != "" {
		return h
	}
	return n.GetSpec().GetName()
}

// NodeState is a node's state as people read it: Ready.
func NodeState(s skepv1.NodeState) string {
	return title(spec.Word(s))
}

// NodeStatus is how a node is, as people read it: Ready, Sick.
func NodeStatus(n *skepv1.Node) string { return title(spec.NodeStatus(n)) }

// Availability is a node's availability as people read it: Active.
func Availability(a skepv1.Availability) string {
	return title(spec.Word(a))
}

// ManagerStatus is empty on workers.
func ManagerStatus(n *skepv1.Node) string {
	m := n.GetManager()
	if m == nil {
		if n.GetWitness() {
			return "No vote (witness)"
		}
		return ""
	}
	text := title(m.Reachability)
	if m.Leader {
		text = "Leader"
	}
	if m.Witness {
		text += " (witness)"
	}
	return text
}

// TaskOptions choose what `ps` shows.
type TaskOptions struct {
	Now       time.Time
	NoTrunc   bool
	NoResolve bool
	Before    []*skepv1.Task // not listed: why those that are wait may be among them
}

// SortTasks orders tasks by natural name, then newest first.
func SortTasks(list []*skepv1.Task) {
	sort.SliceStable(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if a.Name != b.Name {
			return NaturalLess(a.Name, b.Name)
		}
		return a.GetMeta().GetCreatedAt().AsTime().After(b.GetMeta().GetCreatedAt().AsTime())
	})
}

// Tasks is `service ps`, `node ps` and `task ls`.
func Tasks(list []*skepv1.Task, o TaskOptions) *Table {
	SortTasks(list)
	t := &Table{Key: "ID", Columns: []Column{{"ID", "ID"}, {"Name", "NAME"}, {"Image", "IMAGE"}, {"Node", "NODE"}, {"DesiredState", "DESIRED STATE"},
		{"CurrentState", "CURRENT STATE"}, {"Error", "ERROR"}, {"Ports", "PORTS"}}}
	prev := ""
	byID := make(map[string]*skepv1.Task, len(list))
	for _, k := range slices.Concat(list, o.Before) {
		byID[k.GetMeta().GetId()] = k
	}
	for _, k := range list {
		id, name, image, node := k.GetMeta().GetId(), k.Name, k.Image, k.NodeHostname
		if o.NoResolve {
			name, node = k.ServiceId, k.NodeId
			if k.Slot != 0 {
				name += fmt.Sprintf(".%d", k.Slot)
			} else {
				name += "." + k.NodeId
			}
		} else if node == "" {
			node = k.NodeId
		}
		if name == prev {
			if t.Under == nil {
				t.Under = map[int]bool{}
			}
			t.Under[len(t.Rows)] = true
		}
		prev = name
		errText := strings.Join(strings.Fields(k.GetStatus().GetErr()), " ")
		waits := restarts(k, o.Now)
		switch {
		case errText == "" && waits != "":
			// Why the one before it ended is why this one waits.
			errText = strings.Join(strings.Fields(byID[k.Replaces].GetStatus().GetErr()), " ")
		case errText == "" && unwell(k.GetStatus()):
			errText = strings.Join(strings.Fields(k.GetStatus().GetHealthOutput()), " ")
		}
		if !o.NoTrunc {
			id, image, errText = ShortID(id), Image(image), plain.Cut(errText, 30)
		}
		if errText != "" {
			errText = `"` + errText + `"`
		}
		state := State(k.GetStatus().GetState())
		if waits != "" {
			state += ", " + waits
		} else if ms := k.GetStatus().GetSinceUnixMs(); ms > 0 {
			state += " " + Ago(time.UnixMilli(ms), o.Now)
		}
		state += Health(k.GetStatus())
		t.Rows = append(t.Rows, Row{
			"ID": id, "Name": name, "Image": image, "Node": node, "DesiredState": State(k.Desired), "CurrentState": state,
			"Error": errText, "Ports": HostPorts(k.GetStatus().GetPorts()),
		})
	}
	return t
}

// Waits reports whether a task is held back after a failure.
func Waits(k *skepv1.Task, now time.Time) bool { return restarts(k, now) != "" }

// restarts says what a task waits for that is held back after a failure, "" for one that is not.
func restarts(k *skepv1.Task, now time.Time) string {
	wait := time.UnixMilli(k.NotBeforeUnixMs).Sub(now)
	if k.NotBeforeUnixMs == 0 || wait <= 0 || k.GetStatus().GetState() >= skepv1.TaskState_TASK_STATE_RUNNING {
		return ""
	}
	out := "restarts in " + wait.Round(time.Second).String()
	if wait < time.Second {
		out = "restarts in less than a second"
	}
	switch n := k.Failures; {
	case n == 1:
		out += " (failed once)"
	case n > 1:
		out += fmt.Sprintf(" (failed %d times in a row)", n)
	}
	return out
}

// Revisions is `service history`; current marks the newest.
func Revisions(list []*skepv1.Revision, current uint64, now time.Time) *Table {
	t := &Table{Key: "Revision", Columns: []Column{{"Revision", "REVISION"}, {"Created", "CREATED"}, {"Author", "AUTHOR"}, {"Image", "IMAGE"}, {"Summary", "SUMMARY"}, {"Current", "CURRENT"}},
		Default: `{{.Revision}}{{if eq .Current "true"}} *{{end}}` + "\t{{.Created}}\t{{.Author}}\t{{.Image}}\t{{.Summary}}"}
	for _, r := range list {
		t.Rows = append(t.Rows, Row{"Revision": fmt.Sprint(r.Number), "Current": fmt.Sprint(r.Number == current), "Created": Ago(r.GetCreatedAt().AsTime(), now), "Author": dash(r.Author),
			"Image": Image(r.GetSpec().GetTask().GetContainer().GetImage()), "Summary": dash(r.Summary)})
	}
	return t
}

// Images is `image ls`.
func Images(byNode map[string][]*skepv1.Image, now time.Time, noTrunc bool) *Table {
	t := &Table{Key: "ID", Columns: []Column{{"Node", "NODE"}, {"Image", "IMAGE"}, {"ID", "IMAGE ID"}, {"Created", "CREATED"}, {"Size", "SIZE"}, {"InUse", "IN USE"}, {"Digest", "DIGEST"}},
		Default: "{{.Node}}\t{{.Image}}\t{{.ID}}\t{{.Created}}\t{{.Size}}\t{{.InUse}}"}
	var nodes []string
	for n := range byNode {
		nodes = append(nodes, n)
	}
	sort.Slice(nodes, func(i, j int) bool { return NaturalLess(nodes[i], nodes[j]) })
	for _, n := range nodes {
		for _, i := range byNode[n] {
			id := i.Id
			if !noTrunc {
				id = ShortID(strings.TrimPrefix(id, "sha256:"))
			}
			created := "-"
			if i.CreatedAt != nil {
				created = Ago(i.CreatedAt.AsTime(), now)
			}
			used := "no"
			if i.InUse {
				used = "yes"
			}
			t.Rows = append(t.Rows, Row{"Node": n, "Image": dash(i.Name), "ID": dash(id), "Created": created, "Size": Bytes(i.Size), "InUse": used, "Digest": dash(i.Digest)})
		}
	}
	return t
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

package render

import (
	"fmt"
	"strconv"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// Claims is `volume claims`: which node may write which volume.
func Claims(list []*skepv1.VolumeClaim, now time.Time) *Table {
	t := &Table{
		Key: "Name",
		Columns: []Column{{"Driver", "DRIVER"}, {"Name", "VOLUME NAME"}, {"Node", "NODE"}, {"State", "STATE"}, {"Service", "SERVICE"},
			{"Since", "SINCE"}, {"Tasks", "TASKS"}, {"Waiting", "WAITING"}},
		Default: "{{.Driver}}\t{{.Name}}\t{{.Node}}\t{{.State}}\t{{.Service}}\t{{.Since}}\t{{.Tasks}}\t{{.Waiting}}",
	}
	for _, c := range list {
		node, service := c.GetNodeHostname(), c.GetServiceName()
		if node == "" {
			node = c.GetNodeId()
		}
		if service == "" {
			service = c.GetServiceId()
		}
		t.Rows = append(t.Rows, Row{
			"Driver": c.GetDriver(), "Name": c.GetName(), "Node": node, "State": c.GetState(), "Service": service, "Since": Ago(time.UnixMilli(c.GetSinceUnixMs()), now),
			"Tasks": strconv.Itoa(len(c.GetTaskIds())), "Waiting": strconv.Itoa(len(c.GetWaitingTaskIds())),
		})
	}
	return t
}

// Fence says by whom a node was cut off, "" when it was not.
func Fence(n *skepv1.Node) string {
	f := n.GetFence()
	if f == nil {
		return ""
	}
	who := f.GetAuthor()
	if f.GetByCommand() {
		who = "the fencing command"
	}
	return fmt.Sprintf("%s by %s", f.GetAt().AsTime().UTC().Format(time.RFC3339), who)
}

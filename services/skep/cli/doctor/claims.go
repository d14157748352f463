package doctor

import (
	"fmt"
	"time"
)

// releasingFor is how long a node may take to unmount a volume that none of its tasks needs.
const releasingFor = 2 * time.Minute

// claims tells of volumes with a single writer that nobody gives back.
func (d *exam) claims() {
	const check = "volumes"
	if d.denied(d.ClaimsErr, "which node holds which volume") {
		return
	}
	if d.ClaimsErr != nil {
		d.add(Warn, check, "the scheduler does not say which node holds which volume: %v", d.ClaimsErr)
		return
	}
	if len(d.Claims) == 0 {
		return
	}
	since := len(d.out)
	removed := map[string]bool{}
	for _, c := range d.Claims {
		removed[c.GetNodeId()] = true
	}
	for _, n := range d.After.Nodes {
		delete(removed, n.GetMeta().GetId())
	}
	for _, c := range d.Claims {
		name, node := c.GetDriver()+"/"+c.GetName(), c.GetNodeHostname()
		waiting := ""
		if n := len(c.GetWaitingTaskIds()); n > 0 {
			waiting = fmt.Sprintf(", while tasks wait for it: %d", n)
		}
		switch {
		case removed[c.GetNodeId()]:
			d.add(Warn, name, "it is held by node %s, which was removed%s: `skep volume release --driver %s %s` once that machine is certainly off", node, waiting, c.GetDriver(), c.GetName())
		case c.GetState() == "lost" && waiting != "":
			d.add(Warn, name, "it is held by node %s, which does not answer%s: `skep node fence %s` once it is certainly off", node, waiting, d.ref(c.GetNodeId()))
		case c.GetState() == "releasing" && d.Now.Sub(time.UnixMilli(c.GetSinceUnixMs())) > releasingFor && waiting != "":
			d.add(Warn, name, "none of node %s's tasks needs it, and the node has not unmounted it%s: look at `skep volume inspect` and at the plug-in there", node, waiting)
		}
	}
	d.found(since, check, "%s with a single writer, each where its tasks are", count(len(d.Claims), "volume"))
}

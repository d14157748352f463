package quorum

import (
	"fmt"
	"strings"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

// Lost reports whether too few of the managers are there to elect a leader. An election that is under way is no loss.
func Lost(r *skepv1.ListManagersReply) bool {
	return r != nil && !r.Led && r.Voters > 0 && 2*r.Present <= r.Voters
}

// missing are the managers that are not there, with when they were heard of last.
func missing(r *skepv1.ListManagersReply, now time.Time) (out []string) {
	views := map[string]*skepv1.ManagerView{}
	for _, v := range r.Views {
		views[v.NodeId] = v
	}
	for _, m := range r.Set.GetManagers() {
		v := views[m.NodeId]
		if v.GetReachable() {
			continue
		}
		name := m.Hostname
		if name == "" {
			name = m.NodeId
		}
		out = append(out, fmt.Sprintf("%s (%s) %s", name, m.Addr, since(v, now)))
	}
	return out
}

func since(v *skepv1.ManagerView, now time.Time) string {
	if v.GetHeard() == nil {
		return "not heard of yet"
	}
	at := v.Heard.AsTime()
	if now.Sub(at) > 20*time.Hour {
		return "since " + at.Local().Format("2006-01-02 15:04")
	}
	return "since " + at.Local().Format("15:04:05")
}

// Text says what is lost, who is missing and what to type.
func Text(r *skepv1.ListManagersReply, now time.Time) string {
	var b strings.Builder
	is := "are"
	if r.Present == 1 {
		is = "is"
	}
	fmt.Fprintf(&b, "the managers have lost their majority: %d of %d votes %s there, %d are needed. Nothing can be changed until then; containers, names and published ports go on\n",
		r.Present, r.Voters, is, r.Voters/2+1)
	if gone := missing(r, now); len(gone) > 0 {
		fmt.Fprintf(&b, "Missing: %s\n", strings.Join(gone, ", "))
	}
	b.WriteString("Start them: systemctl start skep (without systemd: skep node run)\n" +
		"If they never come back, on one manager that is left, and on no other: skep init --force-new-cluster")
	return b.String()
}

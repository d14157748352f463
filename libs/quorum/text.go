package quorum

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// Lost reports whether too few of the managers are there to elect a leader. An election that is under way is no loss, nor is
// what a lone manager lacks when it starts: the other vote is its own witness, which starts with it.
func Lost(r *skepv1.ListManagersReply) bool {
	return r != nil && len(r.Set.GetManagers()) != 1 && !r.Led && r.Voters > 0 && 2*r.Present <= r.Voters
}

// Missing names the managers that are not there, and since when; "" when all are.
func Missing(r *skepv1.ListManagersReply, now time.Time) string {
	var out []string
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
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			name = m.NodeId // what a machine calls itself is not ours
		}
		out = append(out, fmt.Sprintf("%s (%s) %s", name, m.Addr, since(v, now)))
	}
	return strings.Join(out, ", ")
}

func since(v *skepv1.ManagerView, now time.Time) string {
	if v.GetHeard() == nil {
		return "not heard of yet"
	}
	return "since " + Clock(v.Heard.AsTime(), now)
}

// Clock is a time of today, with its date if it was another day.
func Clock(at, now time.Time) string {
	if now.Sub(at) > 20*time.Hour {
		return at.Local().Format("2006-01-02 15:04")
	}
	return at.Local().Format("15:04:05")
}

// begins every text.
const begins = "the managers have lost their majority: "

// Refused reports whether an error is the refusal of a service that knows of the loss: nothing was done.
func Refused(err error) bool {
	return fault.Is(err, fault.CodeUnavailable) && strings.HasPrefix(err.Error(), begins)
}

// Text says what is lost, who is missing and what to type.
func Text(r *skepv1.ListManagersReply, now time.Time) string {
	var b strings.Builder
	is := "are"
	if r.Present == 1 {
		is = "is"
	}
	fmt.Fprintf(&b, begins+"%d of %d votes %s there, %d are needed. Nothing can be changed until then; containers, names and published ports go on\n",
		r.Present, r.Voters, is, r.Voters/2+1)
	if gone := Missing(r, now); gone != "" {
		fmt.Fprintf(&b, "Missing: %s\n", gone)
	}
	b.WriteString("Start them: systemctl start skep (without systemd: skep node run)\n" +
		"If they never come back, on one manager that is left, and on no other: skep init --force-new-cluster")
	return b.String()
}

package render

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

// Plan prints what a change would do.
func Plan(w io.Writer, name string, p *skepv1.PlanReply) {
	if len(p.Operations) == 0 {
		plain.Fprintf(w, "Nothing to do: service %s is as it should be.\n", name)
	} else {
		plain.Fprintf(w, "Plan for service %s (nothing was changed):\n", name)
		operations(w, p.Operations)
	}
	placing(w, p.Placing)
}

func operations(w io.Writer, ops []*skepv1.Operation) {
	n := map[string]int{}
	var order []string
	for _, o := range ops {
		text := o.Text
		if text == "" {
			text = strings.TrimSpace(fmt.Sprintf("%s %s %s", o.Verb, ShortID(o.TaskId), o.NodeHostname))
			if o.Reason != "" {
				text += " (" + o.Reason + ")"
			}
		}
		plain.Fprintf(w, "  %s\n", text)
		if n[o.Verb] == 0 {
			order = append(order, o.Verb)
		}
		n[o.Verb]++
	}
	var sum []string
	for _, v := range order {
		sum = append(sum, fmt.Sprintf("%d %s", n[v], v))
	}
	unit := "operations"
	if len(ops) == 1 {
		unit = "operation"
	}
	plain.Fprintf(w, "%d %s: %s\n", len(ops), unit, strings.Join(sum, ", "))
}

// placing prints, filter by filter, the nodes a task cannot use, and those it can.
func placing(w io.Writer, p *skepv1.Placing) {
	if p == nil || p.Summary == "" && len(p.Filters) == 0 && len(p.Candidates) == 0 {
		return
	}
	plain.Fprintf(w, "\nPlacement: %s\n", p.Summary)
	for _, f := range p.Filters {
		if len(f.Removed) == 0 {
			continue
		}
		text := f.Text
		if text == "" {
			text = fmt.Sprintf("%d of %d nodes", len(f.Removed), p.Nodes)
		}
		plain.Fprintf(w, "  %s: %s\n", f.Filter, text)
		for i, r := range f.Removed {
			if i == 20 {
				plain.Fprintf(w, "    … and %d more\n", len(f.Removed)-i)
				break
			}
			host := r.Hostname
			if host == "" {
				host = ShortID(r.NodeId)
			}
			plain.Fprintf(w, "    %s: %s\n", host, dash(r.Reason))
		}
	}
	if len(p.Candidates) == 0 {
		return
	}
	plain.Fprintf(w, "  nodes that suit, best first:\n")
	tw := tabwriter.NewWriter(w, 4, 1, 3, ' ', 0)
	plain.Fprintf(tw, "    NODE\tSCORE\tOF THIS SERVICE\tTASKS\tREASON\n")
	for i, c := range p.Candidates {
		if i == 10 {
			plain.Fprintf(tw, "    … and %d more\n", len(p.Candidates)-i)
			break
		}
		host := c.Hostname
		if host == "" {
			host = ShortID(c.NodeId)
		}
		plain.Fprintf(tw, "    %s\t%.3g\t%d\t%d\t%s\n", host, c.Score, c.ServiceTasks, c.Tasks, dash(c.Reason))
	}
	_ = tw.Flush() // to the same writer as everything above
}

// Explain prints why a service stands where it does.
func Explain(w io.Writer, r *skepv1.ExplainReply, now time.Time) {
	s := r.Service
	plain.Fprintf(w, "Service %s: %s, %s running\n", s.GetSpec().GetName(), Mode(s.GetSpec().GetMode()), replicas(s, loop(s, now, true)))
	if u := s.GetUpdateStatus(); u.GetState() != "" {
		plain.Fprintf(w, "Update: %s%s\n", strings.ReplaceAll(u.State, "_", " "), prefixed(": ", u.Message))
	}
	if len(r.Waiting) == 0 {
		plain.Fprintf(w, "\nNo task waits.\n")
	} else {
		plain.Fprintf(w, "\nTasks that do not run:\n")
		for i, t := range r.Waiting {
			if i == 20 {
				plain.Fprintf(w, "  … and %d more\n", len(r.Waiting)-i)
				break
			}
			why := t.GetStatus().GetErr()
			if why == "" {
				why = t.GetStatus().GetMessage()
			}
			on := ""
			if t.NodeHostname != "" {
				on = " on " + t.NodeHostname
			}
			name := t.Name
			if name == "" {
				name = fmt.Sprintf("%s.%d", s.GetSpec().GetName(), t.Slot)
			}
			plain.Fprintf(w, "  %s: %s%s%s%s\n", name, StateWord(t.GetStatus().GetState()), on, prefixed(", ", restarts(t, now)), prefixed(": ", why))
		}
	}
	for _, h := range r.Hints {
		plain.Fprintf(w, "\n%s\n", h)
	}
	placing(w, r.Placing)
	if len(r.Next) > 0 {
		plain.Fprintf(w, "\nNext:\n")
		operations(w, r.Next)
	}
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

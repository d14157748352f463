package wait

import (
	"fmt"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
)

// row is one service of a stack in the view.
type row struct {
	name      string
	dependsOn []*skepv1.Dependency
	progress  *Progress // nil: there is no such service yet
	text      string    // how far it is
	reason    string    // why it is not further
	done      bool
	failed    bool
	blocked   bool // it waits for one that failed
}

// tasks is how many of its tasks are as they should be: 2/3.
func (r *row) tasks() string {
	if r.progress == nil {
		return "-"
	}
	return fmt.Sprintf("%d/%d", r.progress.Done, r.progress.Want)
}

// progressText is how far a service under way is, and what holds it up.
func (r *row) progressText() (text, reason string) {
	if t := updateLine(r.progress.Status); t != "" {
		return t, ""
	}
	text = summary(r.progress)
	if text == "" {
		text = "no task yet"
	}
	if reasons := r.progress.Reasons(); len(reasons) > 0 {
		reason = reasons[0]
	}
	return text, reason
}

// reasonsOf are what holds services up, for the end of a wait.
func reasonsOf(rows []row) []string {
	var out []string
	for _, r := range rows {
		if !r.done {
			out = append(out, r.name+": "+orElse(r.reason, r.text))
		}
	}
	return out
}

// stackDisplay draws a stack: a table in place on a terminal, one line per news elsewhere.
type stackDisplay struct {
	*display
	said map[string]string // service → what was last said of it
}

func newStackDisplay(o Options) *stackDisplay {
	return &stackDisplay{newDisplay(o), map[string]string{}}
}

// rows shows how far every service is; last: nothing more will be shown.
func (d *stackDisplay) rows(rows []row, left time.Duration, last bool) {
	switch {
	case d.o.Quiet:
	case d.o.Terminal:
		d.repaint(table(rows, left, d.extra, d.width()))
	default:
		d.news(rows, last)
	}
}

func sums(rows []row) string {
	done, run, want := 0, 0, 0
	for _, r := range rows {
		if r.done {
			done++
		}
		if r.progress != nil {
			run, want = run+r.progress.Done, want+r.progress.Want
		}
	}
	return fmt.Sprintf("overall progress: %d out of %d services converged, %d out of %d tasks", done, len(rows), run, want)
}

// table is one drawing for a terminal. Of a large stack it shows the services that are not done.
func table(rows []row, left time.Duration, extra string, width int) []string {
	out := []string{sums(rows)}
	shown, pad := rows, 0
	if len(rows) > maxBars {
		shown = nil
		for _, r := range rows {
			if !r.done {
				shown = append(shown, r)
			}
		}
	}
	hidden := max(0, len(shown)-maxBars)
	shown = shown[:min(len(shown), maxBars)]
	for _, r := range shown {
		pad = max(pad, len(r.name))
	}
	for _, r := range shown {
		text := r.text
		if r.reason != "" {
			text += ": " + r.reason
		}
		out = append(out, fmt.Sprintf("%-*s  %7s  %s", pad, r.name, r.tasks(), text))
	}
	if hidden > 0 {
		out = append(out, fmt.Sprintf("and %d more", hidden))
	}
	if extra != "" {
		out = append(out, extra)
	}
	if left > 0 {
		out = append(out, fmt.Sprintf("verify: Waiting %d seconds to verify that tasks are stable...", int((left+time.Second-1)/time.Second)))
	}
	for i := range out {
		out[i] = plain.Cut(plain.Cell(out[i]), max(20, width-1))
	}
	return out
}

// news prints what is new of each service since the last look, and once a second the sums.
func (d *stackDisplay) news(rows []row, last bool) {
	now := d.o.Now()
	for _, r := range rows {
		text := ""
		switch {
		case r.done, r.failed, r.blocked:
			text = r.text
		case r.reason != "":
			text = r.reason
		case updateLine(r.progressStatus()) != "":
			text = r.text
		}
		if text == "" || d.said[r.name] == text {
			continue
		}
		before := d.said[r.name]
		d.said[r.name] = text
		if r.done && d.first && before == "" {
			continue // it was so before
		}
		d.line("%s: %s", r.name, text)
	}
	d.first = false
	if head := sums(rows); head != d.lastSum && (last || now.Sub(d.sumAt) >= time.Second) {
		d.lastSum, d.sumAt = head, now
		d.line("%s", head)
	}
}

func (r *row) progressStatus() *skepv1.UpdateStatus {
	if r.progress == nil {
		return nil
	}
	return r.progress.Status
}

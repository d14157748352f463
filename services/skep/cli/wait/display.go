package wait

import (
	"fmt"
	"sort"
	"strings"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

// maxBars is how many tasks get a bar of their own; of more, only the sums are shown.
const maxBars = 20

// display draws progress: in place on a terminal, one line per change elsewhere.
type display struct {
	o        Options
	out      *plain.Writer
	height   int // lines the last drawing took
	notes    map[string]bool
	lastSum  string
	sumAt    time.Time
	shown    map[string]string // slot label → what was said of it
	causes   map[string]string // slot → the failure last told
	tries    map[string]uint32 // slot → how many failures in a row were told
	verified bool
	first    bool // nothing was shown yet
	extra    string
}

func newDisplay(o Options) *display {
	return &display{o: o, out: plain.NewWriter(o.Out), first: true, notes: map[string]bool{}, shown: map[string]string{}, causes: map[string]string{}, tries: map[string]uint32{}}
}

func (d *display) line(format string, a ...any) {
	if !d.o.Quiet {
		plain.Notef(d.out, format+"\n", a...)
	}
}

// width is the terminal's, 80 where it does not say.
func (d *display) width() int {
	if d.o.Width != nil {
		if w := d.o.Width(); w > 0 {
			return w
		}
	}
	return 80
}

// note says something once.
func (d *display) note(text string) {
	if text == "" || d.notes[text] || d.o.Quiet {
		return
	}
	d.notes[text] = true
	if d.o.Terminal {
		d.extra = text
		return
	}
	d.line("%s", text)
}

func (d *display) draw(p *Progress, left time.Duration) {
	if d.o.Quiet {
		return
	}
	if d.o.Terminal {
		d.repaint(bars(p, left, d.extra, d.width(), d.o.Now()))
		return
	}
	d.changes(p, left)
}

// bars is one drawing for a terminal.
func bars(p *Progress, left time.Duration, extra string, width int, now time.Time) []string {
	out := []string{headline(p)}
	if t := updateLine(p.Status); t != "" {
		out = append(out, t)
	}
	if len(p.Slots) <= maxBars {
		pad := 0
		for _, s := range p.Slots {
			pad = max(pad, len(s.Label))
		}
		for _, s := range p.Slots {
			text := fmt.Sprintf("%-*s: ", pad, s.Label)
			if s.Reason != "" && !s.Done {
				text += render.StateWord(s.State) + ": " + s.Reason + nextTry(&s, now)
			} else {
				text += fmt.Sprintf("%-9s ", render.StateWord(s.State)) + bar(s.State, min(50, width-pad-16))
			}
			out = append(out, text)
		}
	} else {
		out = append(out, summary(p))
		for i, r := range p.Reasons() {
			if i == 3 {
				break
			}
			out = append(out, "  "+r)
		}
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

// nextTry says how often a slot's tasks failed in a row and when the next is started, "" when none waits for that.
func nextTry(s *Slot, now time.Time) string {
	if s.Failures == 0 || s.Done {
		return ""
	}
	out := fmt.Sprintf(" (failed %d times in a row", s.Failures)
	if s.Failures == 1 {
		out = " (failed once"
	}
	if left := s.Again.Sub(now); left > 0 {
		out += ", tried again in " + max(left, time.Second).Round(time.Second).String()
	}
	return out + ")"
}

// stages are the states in the order a task passes them.
var stages = []skepv1.TaskState{
	skepv1.TaskState_TASK_STATE_NEW, skepv1.TaskState_TASK_STATE_PENDING, skepv1.TaskState_TASK_STATE_ASSIGNED, skepv1.TaskState_TASK_STATE_ACCEPTED,
	skepv1.TaskState_TASK_STATE_PREPARING, skepv1.TaskState_TASK_STATE_READY, skepv1.TaskState_TASK_STATE_STARTING, skepv1.TaskState_TASK_STATE_RUNNING,
}

func bar(s skepv1.TaskState, width int) string {
	if width < 4 {
		return ""
	}
	at := sort.Search(len(stages), func(i int) bool { return stages[i] >= s })
	at = min(at, len(stages)-1)
	full := (width - 1) * (at + 1) / len(stages)
	return "[" + strings.Repeat("=", full) + ">" + strings.Repeat(" ", width-1-full) + "]"
}

func headline(p *Progress) string {
	unit := "tasks"
	if p.Job {
		unit = "tasks completed"
	}
	return fmt.Sprintf("overall progress: %d out of %d %s", p.Done, p.Want, unit)
}

func updateLine(s *skepv1.UpdateStatus) string {
	switch s.GetState() {
	case "rollback_started":
		return "rollback: " + orElse(s.Message, "rolling back")
	}
	return ""
}

// summary counts the tasks by state: 12 running, 3 preparing.
func summary(p *Progress) string {
	n := map[skepv1.TaskState]int{}
	for _, s := range p.Slots {
		n[s.State]++
	}
	// Slots beyond those listed have no task yet.
	if missing := p.Want - len(p.Slots); missing > 0 {
		n[skepv1.TaskState_TASK_STATE_NEW] += missing
	}
	var states []skepv1.TaskState
	for s := range n {
		states = append(states, s)
	}
	sort.Slice(states, func(i, j int) bool { return states[i] > states[j] })
	var parts []string
	for _, s := range states {
		parts = append(parts, fmt.Sprintf("%d %s", n[s], render.StateWord(s)))
	}
	return strings.Join(parts, ", ")
}

func (d *display) repaint(lines []string) {
	up := func(n int) plain.Code { return plain.Code(fmt.Sprintf("\x1b[%dA", n)) }
	var parts []any
	if d.height > 0 {
		parts = append(parts, up(d.height))
	}
	for _, l := range lines {
		parts = append(parts, plain.Code("\r\x1b[2K"), l, plain.Code("\n"))
	}
	// What the last drawing had more of.
	for i := len(lines); i < d.height; i++ {
		parts = append(parts, plain.Code("\r\x1b[2K\n"))
	}
	if d.height > len(lines) {
		parts = append(parts, up(d.height-len(lines)))
	}
	d.height = len(lines)
	_ = d.out.Draw(parts...) // a terminal that is gone is no reason to stop
}

// changes prints what is new since the last look.
func (d *display) changes(p *Progress, left time.Duration) {
	defer func() { d.first = false }()
	if t := updateLine(p.Status); t != "" {
		d.note(t)
	}
	if len(p.Slots) <= maxBars {
		for _, s := range p.Slots {
			text := render.StateWord(s.State)
			if s.Node != "" {
				text += " on " + s.Node
			}
			if s.Reason != "" && !s.Done {
				text += ": " + s.Reason
			}
			key := s.Name
			if key == "" {
				key = s.Label
			}
			another := s.Failures > 0 && s.Failures != d.tries[key]
			if another {
				d.tries[key] = s.Failures
			}
			if d.shown[key] == text && !another || s.State == skepv1.TaskState_TASK_STATE_NEW {
				continue
			}
			d.shown[key] = text
			// What ran before the change is not news, nor is a failure that repeats itself.
			cause := strings.TrimPrefix(s.Reason, again)
			if d.first && s.Done || s.Old || !another && !s.Done && cause != "" && d.causes[key] == cause {
				continue
			}
			if cause != "" || s.Done {
				d.causes[key] = cause
			}
			d.line("%s: %s%s", key, text, nextTry(&s, d.o.Now()))
		}
	}
	head := headline(p)
	if len(p.Slots) > maxBars {
		head += " (" + summary(p) + ")"
		if r := p.Reasons(); len(r) > 0 {
			head += ": " + r[0]
		}
	}
	now := d.o.Now()
	if p.Global && p.Want == 0 && !p.Job {
		return // no node was found yet, or none will be: a note tells
	}
	if head != d.lastSum && (len(p.Slots) <= maxBars || p.Converged() || now.Sub(d.sumAt) >= time.Second) {
		d.lastSum, d.sumAt = head, now
		d.line("%s", head)
	}
	if left > 0 && !d.verified {
		d.verified = true
		if left > 2*time.Second {
			d.line("verify: Waiting %d seconds to verify that tasks are stable...", int((left+time.Second-1)/time.Second))
		}
	}
}

// stopping tells what a removed service still has.
func (d *display) stopping(tasks []*skepv1.Task) {
	var lines []string
	if len(tasks) > 0 {
		n := map[string]int{}
		for _, t := range tasks {
			n[orElse(t.NodeHostname, "no node")]++
		}
		var where []string
		for h := range n {
			where = append(where, h)
		}
		sort.Strings(where)
		text := fmt.Sprintf("waiting for %d tasks to stop", len(tasks))
		if len(tasks) == 1 {
			text = "waiting for 1 task to stop"
		}
		if len(where) <= 5 {
			text += " on " + strings.Join(where, ", ")
		}
		lines = append(lines, text)
	}
	if d.o.Quiet {
		return
	}
	if d.o.Terminal {
		d.repaint(lines)
		return
	}
	if len(lines) > 0 && lines[0] != d.lastSum {
		d.lastSum = lines[0]
		d.line("%s", lines[0])
	}
}

func (d *display) finish(name string, job bool) {
	if d.o.Quiet {
		return
	}
	if job {
		d.line("job complete")
		return
	}
	d.line("verify: Service %s converged", name)
}

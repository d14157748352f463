package cli

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

func (a *app) topCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{Use: "top [OPTIONS]", Short: "Watch nodes, services and tasks live", Args: noArgs,
		Long: "Watch nodes, services and tasks live. q ends it, and so does Ctrl-C. Where the screen is too small, each part says how many more there are.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 200*time.Millisecond {
				return Usagef("--interval must be at least 200ms")
			}
			return a.top(cmd.Context(), once, interval)
		}}
	cmd.Flags().BoolVar(&once, "once", false, "Print it once, as plain text")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "Time between two looks")
	return cmd
}

// use is what one node consumes, from its heartbeats.
type use struct {
	cpuNanos uint64
	at       time.Time
	percent  float64
	known    bool
	memory   uint64
	running  uint32
}

// heartbeats keeps the newest heartbeat of every node.
type heartbeats struct {
	mu    sync.Mutex
	nodes map[string]use
}

func (h *heartbeats) take(hb *skepv1.Heartbeat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := time.UnixMilli(hb.SentUnixMs)
	old, n := h.nodes[hb.NodeId], use{cpuNanos: hb.CpuNanos, at: at, memory: hb.MemoryBytes, running: hb.Running}
	if d := at.Sub(old.at); !old.at.IsZero() && d > 0 && hb.CpuNanos >= old.cpuNanos {
		n.percent, n.known = 100*float64(hb.CpuNanos-old.cpuNanos)/float64(d), true
	}
	h.nodes[hb.NodeId] = n
}

func (h *heartbeats) of(id string) (use, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	u, ok := h.nodes[id]
	return u, ok
}

func (a *app) top(ctx context.Context, once bool, interval time.Duration) error {
	nc, err := a.conn(ctx)
	if err != nil {
		return err
	}
	beats := &heartbeats{nodes: map[string]use{}}
	sub, err := nc.Subscribe(subject.AllHeartbeats, func(m *nats.Msg) {
		hb := &skepv1.Heartbeat{}
		if proto.Unmarshal(m.Data, hb) == nil {
			beats.take(hb)
		}
	})
	if err != nil {
		return fmt.Errorf("listen to heartbeats: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	conns := newRates()
	fd, terminal := terminalOf(a.Out)
	if !terminal {
		once = true
	}
	if once {
		nodes, err := a.nodes(ctx)
		if err != nil {
			return err
		}
		conns.look(ctx, a, nodes)
		// Two heartbeats of each node show its load; nodes that stay silent are shown without.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(interval, 2500*time.Millisecond)):
		}
		text, err := a.topPage(ctx, beats, conns, 0, 0)
		if err != nil {
			return err
		}
		_, err = a.Out.Write(text)
		return err
	}
	ctx = impatient(ctx) // the screen says what is wrong
	// A terminal that is gone is no reason to stop: SIGHUP is.
	_ = a.Out.Draw(plain.Code("\x1b[?1049h\x1b[?25l"))
	defer func() { _ = a.Out.Draw(plain.Code("\x1b[?25h\x1b[?1049l")) }()
	keys, release := keysOf(a.In)
	defer release()
	wake, stop, err := a.watch(ctx, "")
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		width, height := 0, 0
		if w, h, err := term.GetSize(fd); err == nil {
			width, height = w, h
		}
		text, err := a.topPage(ctx, beats, conns, interval, max(height-1, 0))
		if ctx.Err() != nil {
			return &Failure{Code: ExitOK}
		}
		if err != nil {
			text = []byte("Error: " + plain.Cell(err.Error()) + "\n")
		}
		_ = a.Out.Draw(screen(string(text), topHelp(keys != nil, interval), width, height)...)
		if !rest(ctx, keys, tick.C, wake) {
			return &Failure{Code: ExitOK}
		}
	}
}

// topHelp is the last line of the screen.
func topHelp(keys bool, interval time.Duration) string {
	how := "Ctrl-C: quit"
	if keys {
		how = "q: quit"
	}
	return fmt.Sprintf("%s · looks every %s and at every change", how, interval)
}

// rest waits for the next look; false: there is none, the user quits.
func rest(ctx context.Context, keys <-chan byte, tick <-chan time.Time, wake <-chan struct{}) bool {
	var soon <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case k := <-keys:
			if k == 'q' || k == 'Q' {
				return false
			}
		case <-tick:
			return true
		case <-soon:
			return true
		case <-wake:
			// A change shows at once, but not more than four times a second.
			wake, soon = nil, time.After(250*time.Millisecond)
		}
	}
}

// screen draws text over the whole terminal, with help in its last line: a line too long is cut, and no end of line after the
// last one scrolls it.
func screen(text, help string, width, height int) []any {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if height > 1 && len(lines) > height-1 {
		lines = lines[:height-1]
	}
	for height > 1 && len(lines) < height-1 {
		lines = append(lines, "")
	}
	if height != 1 {
		lines = append(lines, help)
	}
	parts := []any{plain.Code("\x1b[H")}
	for i, l := range lines {
		if i > 0 {
			parts = append(parts, plain.Code("\r\n"))
		}
		if l = plain.Cell(l); width > 0 {
			l = plain.Cut(l, width)
		}
		parts = append(parts, l, plain.Code("\x1b[K"))
	}
	return append(parts, plain.Code("\x1b[J"))
}

// topPage is one screen; height 0 = as long as it gets. The nodes' counters are read again once interval has passed.
func (a *app) topPage(ctx context.Context, beats *heartbeats, conns *rates, interval time.Duration, height int) ([]byte, error) {
	nodes, err := a.nodes(ctx)
	if err != nil {
		return nil, err
	}
	services, err := a.services(ctx)
	if err != nil {
		return nil, err
	}
	tasks, err := a.tasks(ctx, filter("desired-state", "running"))
	if err != nil {
		return nil, err
	}
	if time.Since(conns.at) >= interval*9/10 {
		conns.look(ctx, a, nodes)
	}
	return topText(a.Now(), nodes, services, tasks, beats, conns, height), nil
}

func topText(now time.Time, nodes []*skepv1.Node, services []*skepv1.Service, tasks []*skepv1.Task, beats *heartbeats, conns *rates, height int) []byte {
	ready, running := 0, 0
	perNode := map[string]int{}
	var waiting []*skepv1.Task
	for _, t := range tasks {
		if t.GetStatus().GetState() == skepv1.TaskState_TASK_STATE_RUNNING {
			running++
			perNode[t.NodeId]++
		} else {
			waiting = append(waiting, t)
		}
	}
	nt := &render.Table{Columns: []render.Column{{Field: "Node", Header: "NODE"}, {Field: "Status", Header: "STATUS"}, {Field: "Availability", Header: "AVAILABILITY"}, {Field: "Manager", Header: "MANAGER"},
		{Field: "Tasks", Header: "TASKS"}, {Field: "CPU", Header: "CPU"}, {Field: "Memory", Header: "MEMORY"}}}
	sort.SliceStable(nodes, func(i, j int) bool { return render.NaturalLess(render.Hostname(nodes[i]), render.Hostname(nodes[j])) })
	for _, n := range nodes {
		if n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_READY {
			ready++
		}
		cpu, mem := "-", "-"
		r := n.GetDescription().GetResources()
		if u, ok := beats.of(n.GetMeta().GetId()); ok && !n.GetWitness() { // which does not say
			if u.known {
				cpu = fmt.Sprintf("%.0f%%", u.percent)
				if c := r.GetNanoCpus(); c > 0 {
					cpu += fmt.Sprintf(" of %g", float64(c)/1e9)
				}
			}
			mem = render.Bytes(int64(u.memory))
			if m := r.GetMemoryBytes(); m > 0 {
				mem += " / " + render.Bytes(m)
			}
		}
		nt.Rows = append(nt.Rows, render.Row{"Node": render.Hostname(n), "Status": render.NodeStatus(n), "Availability": render.Availability(n.GetSpec().GetAvailability()),
			"Manager": orDash(render.ManagerStatus(n)), "Tasks": fmt.Sprint(perNode[n.GetMeta().GetId()]), "CPU": cpu, "Memory": mem})
	}
	st := render.Services(services, false, now)
	st.Columns = append(st.Columns, render.Column{Field: "Conns", Header: "CONNS/S"})
	for i, s := range services {
		st.Rows[i]["Conns"] = conns.of(s) // Services has sorted them
	}
	render.SortTasks(waiting)
	sections := []section{{"nodes", nt}, {"services", st}, {"waiting tasks", render.Tasks(waiting, render.TaskOptions{Now: now})}}
	var b bytes.Buffer
	plain.Fprintf(&b, "%s  nodes %d/%d ready  services %d  tasks %d/%d running\n\n", now.Format("15:04:05"), ready, len(nodes), len(services), running, len(tasks))
	if n := conns.note(); n != "" {
		plain.Fprintf(&b, "%s\n\n", n)
	}
	printSections(&b, sections, height)
	return b.Bytes()
}

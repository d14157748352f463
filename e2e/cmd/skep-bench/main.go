// Command skep-bench measures skep against the bars of the design and prints one table: what, bar, measured, Docker Swarm's figure.
//
// It runs the Go benchmarks of the modules and measures a lab of real hosts. Machines are noisy: the ratio between two rows of one
// run says more than a row alone. It fails only when something cannot be measured, never because a bar is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// row is one line of the table.
type row struct {
	what, bar, swarm string
	measured         string
	met              *bool // nil: no bar to meet
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if done, err := tool(ctx, os.Args[1:], os.Stdout); done {
		if err != nil {
			fmt.Fprintln(os.Stderr, "skep-bench:", err)
			os.Exit(1)
		}
		return
	}
	only := flag.String("only", "", "go, lab, managers, net, update, secret, stack, storage, memory or density: measure only that part")
	rounds := flag.Int("rounds", 3, "times each lab figure is taken; the median is shown")
	networks := flag.Int("networks", 100, "with -only density: networks on the one node")
	services := flag.Int("services", 10, "with -only density: services on each network")
	cycles := flag.Int("cycles", 100, "of churn, for what memory it leaves")
	flag.Parse()
	parts := []part{
		{name: "go", rows: func() ([]row, error) { return goRows(ctx, os.Stderr) }},
		{name: "lab", rows: func() ([]row, error) { return labRows(ctx, *rounds, os.Stderr) }},
		{name: "managers", rows: func() ([]row, error) { return managerRows(ctx, *rounds, os.Stderr) }},
		{name: "net", rows: func() ([]row, error) { return netRows(ctx, *rounds, os.Stderr) }},
		{name: "update", rows: func() ([]row, error) { return updateRows(ctx, *rounds, os.Stderr) }},
		{name: "secret", rows: func() ([]row, error) { return secretRows(ctx, *rounds, os.Stderr) }},
		{name: "stack", rows: func() ([]row, error) { return stackRows(ctx, *rounds, os.Stderr) }},
		{name: "storage", rows: func() ([]row, error) { return storageRows(ctx, os.Stderr) }},
		{name: "memory", rows: func() ([]row, error) { return memoryRows(ctx, *cycles, os.Stderr) }},
		{name: "density", onDemand: true, rows: func() ([]row, error) { return densityRows(ctx, *networks, *services, os.Stderr) }},
	}
	if err := run(parts, *only, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skep-bench:", err)
		os.Exit(1)
	}
}

// part is a share of the table.
type part struct {
	name     string
	onDemand bool // it is no bar and takes long
	rows     func() ([]row, error)
}

// run measures the part that is named, or all that need not be named, and prints what it could measure.
func run(parts []part, only string, out io.Writer) error {
	var rows []row
	var failed error
	known := false
	for _, p := range parts {
		if p.name != only && (only != "" || p.onDemand) {
			continue
		}
		known = true
		r, err := p.rows()
		rows, failed = append(rows, r...), errors.Join(failed, err)
	}
	if !known {
		var names []string
		for _, p := range parts {
			names = append(names, p.name)
		}
		return fmt.Errorf("-only %s is no part: use one of %s", only, strings.Join(names, ", "))
	}
	print(out, rows)
	return failed
}

func print(out io.Writer, rows []row) {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tBAR\tMEASURED\t\tDOCKER SWARM 20.10")
	for _, r := range rows {
		mark := ""
		if r.met != nil {
			if mark = "ok"; !*r.met {
				mark = "MISSED"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, dash(r.bar), dash(r.measured), mark, dash(r.swarm))
	}
	w.Flush()
	fmt.Fprintf(out, "\n%s, %d CPUs. Docker Swarm's figures: the same kind of machine, four hosts in namespaces, image present, medians.\n",
		time.Now().UTC().Format("2006-01-02"), cpus())
}

func dash(s string) string {
	if strings.TrimSpace(s) == "" {
		return "-"
	}
	return s
}

// atMost and atLeast make a row with a bar.
func atMost(what string, bar, got time.Duration, swarm string) row {
	met := got <= bar
	return row{what: what, bar: "≤ " + short(bar), swarm: swarm, measured: short(got), met: &met}
}

func atLeast(what string, bar, got float64, unit, swarm string) row {
	met := got >= bar
	return row{what: what, bar: "≥ " + thousands(bar) + unit, swarm: swarm, measured: thousands(got) + unit, met: &met}
}

func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func thousands(f float64) string {
	s := fmt.Sprintf("%.0f", f)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

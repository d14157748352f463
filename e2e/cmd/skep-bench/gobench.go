package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// benchmark is a Go benchmark whose figure has a place in the table.
type benchmark struct {
	what, pkg, name, unit string
	bar                   float64 // 0: none
	most                  bool    // the bar is an upper one
	swarm                 string
}

// none is the bar of what must not happen once.
const none = 0.5

// packageWithin ends the benchmarks of a package. A million connections to a published port whose backends change all the
// time take 16 minutes on two cores.
const packageWithin = 40 * time.Minute

var benchmarks = []benchmark{
	{"placements, 1k nodes, 1k tasks", "./libs/place", "BenchmarkPlace1kNodes1kTasks", "placements/s", 0, false, ""},
	{"placements, 1k nodes, 100k tasks", "./libs/place", "BenchmarkPlace1kNodes100kTasks", "placements/s", 1_000_000, false, "5,070/s"},
	{"placements, 5k nodes, 100k tasks, constraints", "./libs/place", "BenchmarkPlaceConstraints5kNodes100kTasks", "placements/s", 500_000, false, "430/s"},
	{"placements, 100k nodes, 1M tasks", "./libs/place", "BenchmarkPlace100kNodes1MTasks", "placements/s", 0, false, ""},
	{"1M tasks onto 5k nodes, placed and committed, 1 manager", "./services/scheduler", "BenchmarkCommit5kNodes", "tasks/s", 100_000, false, ""},
	{"the same, 3 managers on this machine", "./services/scheduler", "BenchmarkCommit5kNodes3Managers", "tasks/s", 100_000, false, ""},
	{"a plan over 100k tasks where nothing changes", "./libs/reconcile", "BenchmarkPlanConverged100kTasks", "ns/op", 0, true, ""},
	{"API: create of a service, p50", "./services/state", "BenchmarkCreateService", "p50-ms", 3, true, "0.9 ms"},
	{"state index at 100k tasks", "./services/state/internal/index", "BenchmarkIndex100kTasks", "MB", 0, true, ""},
	{"mesh, new connections/s, 10 published services", "./services/ingress-mesh/internal/ingress", "BenchmarkConnections10And1000", "conn10/s", 0, false, ""},
	{"the same, 1,000 published services", "./services/ingress-mesh/internal/ingress", "BenchmarkConnections10And1000", "conn1000/s", 0, false, ""},
	{"the second in percent of the first, by turns", "./services/ingress-mesh/internal/ingress", "BenchmarkConnections10And1000", "%", 95, false, "iptables 84–92 %"},
	{"connections to a published port while its backends change all the time", "./services/ingress-mesh/internal/ingress", "BenchmarkNoChangeRefuses", "connections", 0, false, ""},
	{"of these, refused or failed", "./services/ingress-mesh/internal/ingress", "BenchmarkNoChangeRefuses", "lost", none, true, ""},
	{"connections to a virtual address while its tasks change all the time", "./services/ingress-mesh/internal/vip", "BenchmarkNoChangeRefusesVIP", "connections", 0, false, ""},
	{"of these, refused or failed", "./services/ingress-mesh/internal/vip", "BenchmarkNoChangeRefusesVIP", "lost", none, true, ""},
	{"byte streams through the broker", "./libs/stream", "BenchmarkThroughput", "MB/s", 0, false, ""},
}

// goRows runs the benchmarks, one package after the other, and picks their figures.
func goRows(ctx context.Context, progress io.Writer) ([]row, error) {
	root, err := workspace()
	if err != nil {
		return nil, err
	}
	var failed error
	results := map[string]map[string]float64{} // benchmark name → unit → value
	ran := map[string]bool{}
	for _, b := range benchmarks {
		if ran[b.pkg] {
			continue
		}
		ran[b.pkg] = true
		fmt.Fprintf(progress, "benchmarks of %s\n", b.pkg)
		if err := runBenchmarks(ctx, root, b.pkg, results); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	var rows []row
	for _, b := range benchmarks {
		for name, units := range results {
			base, sub, _ := strings.Cut(name, "/")
			v, ok := units[b.unit]
			if base != b.name || !ok {
				continue
			}
			what := b.what
			if sub != "" {
				what += ", " + sub
			}
			r := row{what: what, swarm: b.swarm, measured: thousands(v) + " " + b.unit}
			switch {
			case b.bar > 0 && b.most:
				met := v <= b.bar
				r = row{what: what, swarm: b.swarm, bar: fmt.Sprintf("≤ %g %s", b.bar, b.unit), measured: fmt.Sprintf("%.2f %s", v, b.unit), met: &met}
			case b.bar > 0:
				r = atLeast(what, b.bar, v, " "+b.unit, b.swarm)
			}
			rows = append(rows, r)
		}
	}
	return rows, failed
}

func runBenchmarks(ctx context.Context, root, pkg string, results map[string]map[string]float64) error {
	var names []string
	for _, b := range benchmarks {
		if b.pkg == pkg {
			names = append(names, b.name)
		}
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^("+strings.Join(names, "|")+")$", "-benchtime", "1s", "-timeout", packageWithin.String(), pkg)
	cmd.Dir = root
	// The bar of the commits is about a million tasks; by default the benchmark takes a tenth.
	cmd.Env = append(os.Environ(), "SKEP_BENCH_TASKS=1000000")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	parse(string(out), results)
	if err != nil {
		return fmt.Errorf("benchmarks of %s: %w\n%s%s", pkg, err, out, errs.String())
	}
	return nil
}

// parse reads lines such as "BenchmarkX/y-2  10  123 ns/op  456 placements/s".
func parse(out string, results map[string]map[string]float64) {
	for _, line := range strings.Split(out, "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := f[0]
		if i := strings.LastIndex(name, "-"); i > 0 {
			name = name[:i]
		}
		if results[name] == nil {
			results[name] = map[string]float64{}
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				results[name][f[i+1]] = v
			}
		}
	}
}

// workspace is the folder with go.work, from here upwards or beside the program.
func workspace() (string, error) {
	starts := []string{}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	for _, dir := range starts {
		for ; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
				return dir, nil
			}
		}
	}
	return "", errors.New("no go.work here or above: run it in the project's folder")
}

func cpus() int { return runtime.NumCPU() }

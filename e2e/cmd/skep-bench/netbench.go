package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// netRows measures what the networks cost: each figure beside its direct counterpart, in turns in the same run.
func netRows(ctx context.Context, rounds int, progress io.Writer) ([]row, error) {
	l, err := lab.Up(ctx, lab.Options{Name: "netbench", Hosts: 3, Lifeline: true, Progress: progress})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: rounds}
	for _, step := range []func() error{r.netSetup, r.vipRate, r.meshRate, r.meshThroughput, r.resolverRate, r.endpointDelay, r.twentyOnOverlay, func() error { return r.alone(20) }, r.encryptedThroughput} {
		if err = step(); err != nil {
			break
		}
	}
	return r.rows, errors.Join(err, l.Down())
}

// taskOf is the id of a service's running task on a host.
func (r *rig) taskOf(service, host string) (string, error) {
	out, err := r.skep("service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", "{{.ID}} {{.Node}}", service)
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(out, "\n") {
		if id, node, _ := strings.Cut(line, " "); node == host {
			return id, nil
		}
	}
	return "", fmt.Errorf("%s has no task on %s", service, host)
}

// inside runs one of this program's load makers in the network namespace of a service's task on a host.
func (r *rig) inside(service, host string, args ...string) (float64, error) {
	id, err := r.taskOf(service, host)
	if err != nil {
		return 0, err
	}
	return r.figure(host, append([]string{"nsenter", "--net=/run/skep/netns/" + id, "skep-bench"}, args...)...)
}

func (r *rig) figure(host string, argv ...string) (float64, error) {
	out, err := r.on(host, argv...)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// addressOf is the address of a service's task on a host: on a network by its name, or on skep0 for "".
func (r *rig) addressOf(service, host, network string) (string, error) {
	id, err := r.taskOf(service, host)
	if err != nil {
		return "", err
	}
	dev := "eth1"
	if network == "" {
		dev = "eth0"
	}
	out, err := r.on(host, "nsenter", "--net=/run/skep/netns/"+id, "ip", "-j", "-4", "addr", "show", dev)
	if err != nil {
		return "", err
	}
	var links []struct {
		Addresses []struct{ Local string } `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) == 0 || len(links[0].Addresses) == 0 {
		return "", fmt.Errorf("no address of %s on %s: %s", service, host, out)
	}
	return links[0].Addresses[0].Local, nil
}

// vipOf is a service's first virtual address.
func (r *rig) vipOf(service string) (string, error) {
	out, err := r.skep("service", "inspect", "--format", "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}", service)
	if err != nil {
		return "", err
	}
	addr, _, ok := strings.Cut(out, "/")
	if !ok {
		return "", fmt.Errorf("%s has no virtual address: %q", service, out)
	}
	return addr, nil
}

func (r *rig) netSetup() error {
	for _, args := range [][]string{
		{"network", "create", "bench"},
		{"service", "create", "--name", "web", "--mode", "global", "--network", "bench", "--publish", "8080:80", "whoami:v1"},
		{"service", "create", "--name", "one", "--constraint", "node.hostname==w1", "--network", "bench", "--publish", "8081:80", "whoami:v1"},
		{"service", "create", "--name", "util", "--mode", "global", "--network", "bench", "busybox", "sleep", "100000"},
	} {
		if _, err := r.skep(args...); err != nil {
			return err
		}
	}
	_, err := r.await("the published port", time.Now(), func() (bool, error) {
		_, err := r.on("client", "curl", "-sS", "--max-time", "2", "http://10.90.2.2:8081/")
		return err == nil, nil
	})
	return err
}

// against measures two things in turns and notes their medians' ratio.
func (r *rig) against(what, unit string, bar float64, a, b func() (float64, error), beside string) error {
	var as, bs []float64
	for range r.rounds {
		x, err := a()
		if err != nil {
			return err
		}
		y, err := b()
		if err != nil {
			return err
		}
		as, bs = append(as, x), append(bs, y)
	}
	slices.Sort(as)
	slices.Sort(bs)
	x, y := as[len(as)/2], bs[len(bs)/2]
	out := row{what: what, measured: fmt.Sprintf("%.0f %% (%s of %s %s, %s)", 100*x/y, thousands(x), thousands(y), unit, beside)}
	if bar > 0 {
		met := x/y >= bar
		out.bar, out.met = fmt.Sprintf("≥ %.0f %%", 100*bar), &met
	}
	r.note(out)
	return nil
}

func (r *rig) vipRate() error {
	direct, err := r.addressOf("one", "w1", "bench")
	if err != nil {
		return err
	}
	virtual, err := r.vipOf("one")
	if err != nil {
		return err
	}
	return r.against("VIP, new connections", "/s", 0.75,
		func() (float64, error) { return r.inside("util", "m1", "conns", "http://"+virtual+"/") },
		func() (float64, error) { return r.inside("util", "m1", "conns", "http://"+direct+"/") }, "the task's own address")
}

func (r *rig) meshRate() error {
	direct, err := r.addressOf("one", "w1", "")
	if err != nil {
		return err
	}
	return r.against("mesh, new connections across nodes", "/s", 0,
		func() (float64, error) { return r.figure("m1", "skep-bench", "conns", "http://10.90.1.1:8081/") },
		func() (float64, error) { return r.figure("m1", "skep-bench", "conns", "http://"+direct+"/") }, "routed to the task")
}

func (r *rig) meshThroughput() error {
	direct, err := r.addressOf("one", "w1", "")
	if err != nil {
		return err
	}
	const n = "4000000000"
	return r.against("mesh, throughput across nodes", "MB/s", 0.9,
		func() (float64, error) {
			return r.figure("m1", "skep-bench", "bulk", "-n", n, "http://10.90.1.1:8081/bytes")
		},
		func() (float64, error) {
			return r.figure("m1", "skep-bench", "bulk", "-n", n, "http://"+direct+"/bytes")
		}, "VXLAN to the task")
}

func (r *rig) resolverRate() error {
	rate, err := r.inside("util", "m1", "queries", "-c", "16", "web")
	if err != nil {
		return err
	}
	r.note(atLeast("resolver, one task asking", 20_000, rate, "/s", ""))
	return nil
}

// endpointDelay is from a task's start, by its agent's clock, to its address in every node's tables.
func (r *rig) endpointDelay() error {
	if _, err := r.skep("service", "create", "--name", "grow", "--network", "bench", "--replicas", "1", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000"); err != nil {
		return err
	}
	var delays []time.Duration
	for n := 2; n < 2+10*r.rounds; n++ {
		type result struct {
			at  float64
			err error
		}
		results := make(chan result, 3)
		for _, host := range []string{"m1", "w1", "w2"} {
			go func() {
				at, err := r.inside("util", host, "seen", "-n", strconv.Itoa(n), "tasks.grow")
				results <- result{at, err}
			}()
		}
		if _, err := r.skep("service", "scale", "grow="+strconv.Itoa(n)); err != nil {
			return err
		}
		var last float64
		for range 3 {
			v := <-results
			if v.err != nil {
				return v.err
			}
			last = max(last, v.at)
		}
		id, err := r.skep("service", "ps", "--no-trunc", "--filter", "name=grow."+strconv.Itoa(n), "--filter", "desired-state=running", "--format", "{{.ID}}", "grow")
		if err != nil {
			return err
		}
		started, err := r.runningSince(strings.TrimSpace(id))
		if err != nil {
			return err
		}
		delays = append(delays, time.Duration(last-float64(started.UnixMilli()))*time.Millisecond)
	}
	slices.Sort(delays)
	r.note(row{what: "task runs → in every node's tables, p50", measured: short(delays[len(delays)/2])})
	r.note(atMost("task runs → in every node's tables, p99 (3 nodes)", 200*time.Millisecond, delays[len(delays)*99/100], ""))
	_, err := r.skep("service", "rm", "grow")
	return err
}

// runningSince is when the agent saw a task run.
func (r *rig) runningSince(task string) (time.Time, error) {
	out, err := r.skep("task", "inspect", task)
	if err != nil {
		return time.Time{}, err
	}
	var docs []struct {
		Status struct{ Timestamp time.Time }
	}
	if err := json.Unmarshal([]byte(out), &docs); err != nil || len(docs) != 1 {
		return time.Time{}, fmt.Errorf("inspect of task %s: %v: %s", task, err, out)
	}
	return docs[0].Status.Timestamp, nil
}

func (r *rig) twentyOnOverlay() error {
	d, err := r.median(func() (time.Duration, error) {
		began := time.Now()
		if _, err := r.skep("service", "create", "--detach", "--name", "twenty", "--network", "bench", "--replicas", "20", "--stop-signal", "SIGKILL", "busybox", "sleep", "100000"); err != nil {
			return 0, err
		}
		at, err := r.inside("util", "m1", "seen", "-n", "20", "tasks.twenty")
		if err != nil {
			return 0, err
		}
		_, err = r.skep("service", "rm", "twenty")
		if err != nil {
			return 0, err
		}
		_, err = r.await("twenty to go", time.Now(), func() (bool, error) {
			n, err := r.containers("m1", "w1", "w2")
			return n <= 7, err
		})
		return time.UnixMilli(int64(at)).Sub(began), err
	})
	if err == nil {
		r.note(atMost("20 replicas on an overlay, running and resolvable", 1500*time.Millisecond, d, "4.3 s"))
	}
	return err
}

func (r *rig) encryptedThroughput() error {
	for _, args := range [][]string{
		{"network", "create", "--opt", "encrypted", "secret"},
		{"service", "create", "--name", "safe", "--constraint", "node.hostname==w1", "--network", "secret", "whoami:v1"},
		{"service", "create", "--name", "agent", "--constraint", "node.hostname==m1", "--network", "secret", "busybox", "sleep", "100000"},
	} {
		if _, err := r.skep(args...); err != nil {
			return err
		}
	}
	plain, err := r.addressOf("one", "w1", "bench")
	if err != nil {
		return err
	}
	safe, err := r.addressOf("safe", "w1", "secret")
	if err != nil {
		return err
	}
	return r.against("encrypted network, throughput", "MB/s", 0,
		func() (float64, error) {
			return r.inside("agent", "m1", "bulk", "-n", "1000000000", "http://"+safe+"/bytes")
		},
		func() (float64, error) {
			return r.inside("util", "m1", "bulk", "-n", "4000000000", "http://"+plain+"/bytes")
		}, "a plain network")
}

// densityRows is one node with so many networks of so many services each: 100 of 10 take minutes and 10 GB.
func densityRows(ctx context.Context, networks, services int, progress io.Writer) ([]row, error) {
	// The node's own subnet has an address for each task.
	l, err := lab.Up(ctx, lab.Options{Name: "density", Hosts: 1, Lifeline: true, Progress: progress, InitFlags: []string{"--node-subnet-mask-length", "20"}})
	if err != nil {
		return nil, err
	}
	r := &rig{Lab: l, ctx: ctx, progress: progress, rounds: 1}
	err = r.density(networks, services)
	return r.rows, errors.Join(err, l.Down())
}

// createAtOnce networks are made by one command on the host, which may take no longer than patience.
const createAtOnce = 10

func (r *rig) density(networks, services int) error {
	began := time.Now()
	// By one shell: to enter the host costs more than to create a service.
	create := `set -e; n=0; while [ $n -lt "$1" ]; do skep network create net$n >/dev/null; s=0; while [ $s -lt "$2" ]; do
		skep service create --detach --name s$n-$s --network net$n --stop-signal SIGKILL busybox sleep 100000 >/dev/null; s=$((s+1)); done; n=$((n+1)); done`
	for n := 0; n < networks; n += createAtOnce {
		script := strings.Replace(create, "n=0", fmt.Sprint("n=", n), 1)
		if _, err := r.on("m1", "sh", "-c", script, "sh", fmt.Sprint(min(n+createAtOnce, networks)), fmt.Sprint(services)); err != nil {
			return err
		}
	}
	want := networks * services
	for last, since := 0, time.Now(); ; {
		out, err := r.on("m1", "ctr", "-a", "/run/skep/containerd.sock", "-n", "skep", "task", "ls")
		if err != nil {
			return err
		}
		n := strings.Count(out, "RUNNING")
		if n == want {
			break
		}
		if n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) > patience {
			return fmt.Errorf("%d of %d tasks run and no further one came", n, want)
		}
		time.Sleep(200 * time.Millisecond)
	}
	r.note(row{what: fmt.Sprintf("%d networks × %d services on one node, created and running", networks, services), measured: short(time.Since(began))})
	mb, err := r.pss("m1")
	if err != nil {
		return err
	}
	r.note(row{what: "memory of skep and containerd then, PSS without shims", measured: fmt.Sprintf("%.0f MB", mb)})
	load, err := r.load("m1", 30*time.Second)
	if err != nil {
		return err
	}
	r.note(row{what: "CPU of skep and containerd then, nothing changing", measured: fmt.Sprintf("%.2f %%", load)})
	restart, err := r.on("m1", "sh", "-c", "pkill -9 -x skep; sleep 0.1; b=$(date +%s%3N); setsid skep node run >>/var/lib/skep/skep.log 2>&1 </dev/null & until skep node ls >/dev/null 2>&1; do sleep 0.02; done; e=$(date +%s%3N); echo $((e-b))")
	if err != nil {
		return err
	}
	ms, err := strconv.Atoi(strings.TrimSpace(restart))
	if err != nil {
		return err
	}
	r.note(row{what: "restart of skep with them, until it answers", measured: short(time.Duration(ms) * time.Millisecond)})
	return nil
}

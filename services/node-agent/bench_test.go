package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

func benchmarkStart(b *testing.B, count int) {
	n := up(b)
	warm := n.put(1, n.spec("sleep", "1000"))
	n.state(running, warm...)
	var start, stop time.Duration
	for b.Loop() {
		began := time.Now()
		ids := n.put(count, n.spec("sleep", "1000"))
		n.state(running, ids...)
		start += time.Since(began)
		began = time.Now()
		n.want(remove, ids...)
		n.state(shutdown, ids...)
		n.drop(ids...)
		n.await("removal", func(m map[string]*skepv1.TaskStatus) bool { return len(m) == 1 })
		stop += time.Since(began)
	}
	b.ReportMetric(float64(start.Milliseconds())/float64(b.N), "start-ms")
	b.ReportMetric(float64(stop.Milliseconds())/float64(b.N), "remove-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkStart20 is from the push of 20 tasks to 20 RUNNING in the managers' hands.
func BenchmarkStart20(b *testing.B) { benchmarkStart(b, 20) }

// BenchmarkStart100 is the same with 100.
func BenchmarkStart100(b *testing.B) { benchmarkStart(b, 100) }

// BenchmarkReattach100 is from the start of an agent to the report of 100 containers that ran on without it.
func BenchmarkReattach100(b *testing.B) {
	n := up(b)
	ids := n.put(100, n.spec("sleep", "1000"))
	n.state(running, ids...)
	var took time.Duration
	for b.Loop() {
		n.halt()
		n.mu.Lock()
		clear(n.status)
		n.mu.Unlock()
		began := time.Now()
		n.start()
		n.state(running, ids...)
		took += time.Since(began)
	}
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "reattach-ms")
	b.ReportMetric(0, "ns/op")
}

// cpuOf is what a process and those it waited for have used.
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var ticks int
	for _, v := range f[11:15] { // utime stime cutime cstime
		n, _ := strconv.Atoi(v)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// BenchmarkCommandProbe measures what one probe by a command costs the node: agent, containerd, shim and runc.
func BenchmarkCommandProbe(b *testing.B) {
	n := up(b)
	ids := n.put(1, n.spec("sleep", "1000"))
	n.state(running, ids...)
	shim := n.svc.runtime.ShimPid(ids[0])
	use := func() map[string]time.Duration {
		return map[string]time.Duration{"agent": cpuOf(os.Getpid()), "containerd": cpuOf(n.svc.daemon.Pid()), "shim+runc": cpuOf(shim)}
	}
	began := use()
	for b.Loop() {
		if code, err := n.svc.runtime.Probe(context.Background(), ids[0], "health", []string{"true"}, io.Discard, func() {}); code != 0 || err != nil {
			b.Fatal(code, err)
		}
	}
	var all time.Duration
	for who, now := range use() {
		all += now - began[who]
		b.ReportMetric(float64((now-began[who]).Microseconds())/float64(b.N), who+"-µs/op")
	}
	b.ReportMetric(float64(all.Microseconds())/float64(b.N)*20/2e6*100, "%-of-2-cores") // 200 tasks, every 10 s
}

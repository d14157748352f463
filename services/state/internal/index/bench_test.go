package index

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	benchTasks    = 100_000
	benchNodes    = 500
	benchServices = 1_000
)

// filled is an index of 100,000 running tasks of 1,000 services on 500 nodes.
func filled(b *testing.B) (x *Index, services []string) {
	x = New()
	for range benchServices {
		services = append(services, id.New())
	}
	var spec, revs, tasks, stats []kv.Entry
	for i, s := range services {
		sp := &skepv1.ServiceSpec{Name: fmt.Sprintf("service-%d", i), Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "httpd:latest", Env: []string{"A=b"}}}}
		spec = append(spec, entry(b, "service."+s, 1, &skepv1.Service{Meta: &skepv1.Meta{Id: s}, Spec: sp}))
		revs = append(revs, entry(b, keys.RevisionKey(s, 1), 1, &skepv1.Revision{ServiceId: s, Number: 1, Spec: sp}))
	}
	now := time.Now().UnixMilli()
	for n := range benchNodes {
		node := id.New()
		set, rep := &skepv1.NodeTasks{}, &skepv1.NodeStatus{NodeId: node, Session: id.New(), Report: 1}
		for i := range benchTasks / benchNodes {
			t := &skepv1.TaskRecord{Id: id.New(), ServiceId: services[(n*7+i)%benchServices], Slot: uint64(n + 1), Revision: 1, Desired: running, CreatedUnixMs: now}
			set.Tasks = append(set.Tasks, t)
			rep.Tasks = append(rep.Tasks, &skepv1.TaskStatus{TaskId: t.Id, State: running, SinceUnixMs: now, Message: "started", ContainerId: t.Id, Pid: 12345, Addresses: []string{"100.64.2.17/23"}})
		}
		tasks = append(tasks, entry(b, node, 1, set))
		stats = append(stats, entry(b, node, 1, rep))
	}
	x.ApplySpec(kv.Delta{Reset: true, Entries: spec})
	x.ApplyRev(kv.Delta{Reset: true, Entries: revs})
	x.ApplyTask(kv.Delta{Reset: true, Entries: tasks})
	x.ApplyStatus(kv.Delta{Reset: true, Entries: stats})
	return x, services
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkIndex100kTasks reports what the index of 100,000 running tasks takes, and times counting a service's
// tasks after a node's report and finding a task by a beginning of its id.
func BenchmarkIndex100kTasks(b *testing.B) {
	before := heap()
	x, services := filled(b)
	x.Counts(services[0])
	used := heap() - before
	report := func(b *testing.B) {
		b.ReportMetric(float64(used)/(1<<20), "MB")
		b.ReportMetric(float64(used)/benchTasks, "bytes/task")
	}
	b.Run("count", func(b *testing.B) {
		node := x.Groups(services[0])[0]
		s := x.statuses[node]
		e := kv.Entry{Key: node, Value: s.raw, Revision: s.rev}
		for b.Loop() {
			x.ApplyStatus(delta(e))
			if c := x.Counts(services[0]); c.Running == 0 {
				b.Fatalf("%+v", c)
			}
		}
		report(b)
	})
	b.Run("find", func(b *testing.B) {
		want := x.TaskIDs(x.Groups(services[0])[0])[0]
		for b.Loop() {
			if len(x.GroupsMentioning(want[:20])) != 1 {
				b.Fatal("not found")
			}
		}
		report(b)
	})
	b.Run("recount-all", func(b *testing.B) {
		for b.Loop() {
			x.mu.Lock()
			for g := range x.groups {
				x.dirty[g] = struct{}{}
			}
			x.mu.Unlock()
			x.settle()
		}
		b.ReportMetric(benchTasks*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	})
	runtime.KeepAlive(x)
}

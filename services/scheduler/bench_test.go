package scheduler

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// scale is SKEP_BENCH_TASKS, by default a tenth of the million that the bar is about.
func scale(b *testing.B) int {
	n := 100_000
	if s := os.Getenv("SKEP_BENCH_TASKS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatalf("SKEP_BENCH_TASKS: %v", err)
		}
	}
	return n
}

// benchmarkCommit places tasks of services of 1,000 replicas onto 5,000 nodes and commits them, every write synced to disk:
// what is timed begins when the scheduler looks and ends with the last acknowledgement.
func benchmarkCommit(b *testing.B, n *kvtest.NATS) {
	const nodes, replicas = 5_000, 1_000
	tasks := scale(b)
	ctx := context.Background()
	for range b.N {
		b.StopTimer()
		s, err := New(Config{NC: n.Conn(b), NodeID: "bench"})
		if err != nil {
			b.Fatal(err)
		}
		put := func(err error) {
			if err != nil {
				b.Fatal(err)
			}
		}
		enc := func(m proto.Message) []byte {
			v, err := proto.Marshal(m)
			put(err)
			return v
		}
		put(s.state.PutSpec("cluster", enc(&skepv1.Cluster{Spec: &skepv1.ClusterSpec{TaskHistoryLimit: 5}})))
		for i := range nodes {
			id := fmt.Sprintf("n%024d", i)
			put(s.state.PutSpec("node."+id, enc(&skepv1.NodeObject{Spec: &skepv1.NodeSpec{}})))
			put(s.state.PutNodeBucket("desc."+id, enc(&skepv1.NodeDescription{Hostname: id, Resources: &skepv1.Resources{NanoCpus: 64e9, MemoryBytes: 256 << 30}})))
			put(s.state.PutNodeBucket("live."+id, enc(&skepv1.NodeLive{State: skepv1.NodeState_NODE_STATE_READY})))
		}
		for i := range tasks / replicas {
			id := fmt.Sprintf("s%024d", i)
			put(s.state.PutSpec("service."+id, enc(&skepv1.Service{Meta: &skepv1.Meta{Id: id}, Spec: service(id, replicas, "v1"), Revision: 1})))
		}
		feed := kv.Follow(ctx, s.js, subject.Task, func(kv.Delta) {})
		s.fence.Lead(1)
		put(s.fence.Hold(ctx, feed))
		feed.Close()
		b.StartTimer()
		begin := time.Now()
		all := true
		plan := s.plan(time.Now(), &all, map[string]int64{})
		planned := time.Since(begin)
		done, err := s.commit(ctx, plan)
		put(err)
		if done != tasks {
			b.Fatalf("committed %d of %d", done, tasks)
		}
		b.ReportMetric(float64(planned.Milliseconds()), "plan-ms")
	}
	b.ReportMetric(float64(tasks)*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}

func BenchmarkCommit5kNodes(b *testing.B)          { benchmarkCommit(b, kvtest.Server(b)) }
func BenchmarkCommit5kNodes3Managers(b *testing.B) { benchmarkCommit(b, kvtest.Cluster(b, 3)) }

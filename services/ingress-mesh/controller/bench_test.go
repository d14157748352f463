package controller

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/id"
	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// From the acknowledgement of a status to its record at a node, on an idle machine; the bar is 10 ms.
func BenchmarkStatusToRecord(b *testing.B) {
	w := newWorld(b)
	net, svc, n1 := id.New(), id.New(), id.New()
	w.node(n1, 1)
	w.network(net, "10.9.0.0/20")
	w.service(svc, net)
	w.hold(n1, net, "10.9.0.0/28")
	w.tasks(n1, svc, net, running, running, "10.9.0.2")
	w.start("one", nil)
	w.await("somebody leads", func() bool { return len(serving(w.get(net+"."+n1))) == 1 })
	sub, err := w.nc.SubscribeSync(subject.Net(net, n1))
	if err != nil {
		b.Fatal(err)
	}
	var raw [2][]byte
	for i, state := range []skepv1.TaskState{skepv1.TaskState_TASK_STATE_STARTING, running} {
		st := &skepv1.NodeStatus{NodeId: n1, Tasks: []*skepv1.TaskStatus{{TaskId: svc + "-" + n1 + "-0", State: state, Networks: []*skepv1.NetworkAddress{{NetworkId: net, Addr: "10.9.0.2/20"}}}}}
		if raw[i], err = proto.Marshal(st); err != nil {
			b.Fatal(err)
		}
	}
	var took []time.Duration
	b.ResetTimer()
	for i := range b.N {
		if _, err := w.b[subject.Status].Put(context.Background(), n1, raw[i%2]); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if _, err := sub.NextMsg(10 * time.Second); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
		time.Sleep(reportEvery) // it is idle when the next one comes, and the pace is kept
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// A new leader of a cluster of 500 nodes without records: from its start until all of them are written.
func BenchmarkAllRecords(b *testing.B) {
	const nodes, tasks = 500, 20
	for range b.N {
		b.StopTimer()
		w := newWorld(b)
		net, svc := id.New(), id.New()
		w.network(net, "10.0.0.0/12")
		w.service(svc, net)
		var all []string
		for i := range nodes {
			all = append(all, id.New())
			w.node(all[i], uint32(i+1))
			var addrs []string
			for t := range tasks {
				addrs = append(addrs, fmt.Sprintf("10.%d.%d.%d", i/256, i%256, t+2))
			}
			w.hold(all[i], net, fmt.Sprintf("10.%d.%d.0/26", i/256, i%256))
			w.tasks(all[i], svc, net, running, running, addrs...)
		}
		last := slices.Max(all) // nodes are written in order
		b.StartTimer()
		_, stop := w.start("one", nil)
		w.await("everything is written", func() bool { return len(serving(w.get(net+"."+last))) == tasks })
		b.StopTimer()
		stop()
	}
}

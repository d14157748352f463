package task

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// openFor bounds how long a task that runs is kept from its service's clients because its ports do not answer.
	// One that never listens gets its connections after that, and refuses them, as in Swarm.
	openFor = 10 * time.Second
	// The pause between two looks: short at first, since most programs listen within milliseconds.
	openFirst, openMost = 2 * time.Millisecond, 100 * time.Millisecond
	openDial            = 500 * time.Millisecond
)

// tcpPorts are the ports of the container that clients are led to.
func (j *Job) tcpPorts() []uint32 {
	var out []uint32
	for _, p := range j.Revision.GetSpec().GetEndpoint().GetPorts() {
		if p.GetProtocol() == "tcp" {
			out = append(out, p.GetTargetPort())
		}
	}
	return out
}

// opensPorts reports whether a task is to be asked at its address before clients are led to it.
func (w *worker) opensPorts() bool {
	return len(w.job().tcpPorts()) > 0 && len(w.snapshot().Addresses) > 0
}

// awaitOpen makes a task ready once its published TCP ports accept connections: a program needs a moment between its
// start and its first listen, and clients led there in between would be refused while other tasks could have served them.
func (w *worker) awaitOpen(outer context.Context) {
	ctx, cancel := context.WithTimeout(outer, openFor)
	defer cancel()
	if p, err := netip.ParsePrefix(w.snapshot().Addresses[0]); err == nil {
		for _, port := range w.job().tcpPorts() {
			w.awaitPort(ctx, net.JoinHostPort(p.Addr().String(), strconv.Itoa(int(port))))
		}
	}
	if outer.Err() != nil {
		return // the agent or the task ends: the next one asks again
	}
	w.setStatus(func(st *skepv1.TaskStatus) {
		if st.State == skepv1.TaskState_TASK_STATE_RUNNING {
			st.NotReady = false
		}
	})
}

// awaitPort returns once a connection is accepted, the task has ended, or time is up.
func (w *worker) awaitPort(ctx context.Context, addr string) {
	d := net.Dialer{Timeout: openDial}
	for pause := openFirst; ; pause = min(2*pause, openMost) {
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = c.Close()
			return
		}
		if w.snapshot().State != skepv1.TaskState_TASK_STATE_RUNNING || w.ending() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

package overlay

import (
	"fmt"
	"maps"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// watchBuffer holds a few messages: what does not fit says as much as what does.
	watchBuffer = 8 << 10
	// lookAfter bounds the trust in what the kernel says of its own accord.
	lookAfter = time.Minute
)

// watch hears every change of devices, of forwarding entries and of neighbours in a namespace, whoever makes it: one in
// which nothing was heard since it was right need not be read again. Reading costs a dump of each table, hearing a
// system call.
type watch struct {
	socket *nl.NetlinkSocket
	buf    []byte
}

func newWatch(ns netns.NsHandle) (*watch, error) {
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel: %w", err)
	}
	if err := s.SetReceiveBufferSize(watchBuffer, false); err != nil {
		s.Close()
		return nil, fmt.Errorf("set the buffer of a socket: %w", err)
	}
	return &watch{socket: s, buf: make([]byte, 1)}, nil
}

func (w *watch) close() { w.socket.Close() }

// quiet reports whether nothing has changed since it was asked last. A buffer that overflowed, and whatever else goes
// wrong, counts as a change.
func (w *watch) quiet() bool {
	for quiet := true; ; quiet = false {
		_, _, err := unix.Recvfrom(w.socket.GetFd(), w.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch err {
		case nil, unix.ENOBUFS, unix.EINTR:
		case unix.EAGAIN:
			return quiet
		default:
			return false
		}
	}
}

// settled is what a namespace was seen to hold, and when.
type settled struct {
	want want
	at   time.Time
}

// asSettled reports whether the namespace is as w says without reading it.
func (s *space) asSettled(w want, now time.Time) bool {
	quiet := s.watch.quiet() // asked in any case: what is heard later came after this look
	return quiet && s.settled != nil && now.Sub(s.settled.at) < lookAfter && s.settled.want.equal(w)
}

// allLinked reports whether every task this process attached has its link.
func (s *space) allLinked(have kernel) bool {
	there := have.tasks()
	for task := range s.tasks {
		if !there[task] {
			return false
		}
	}
	return true
}

func (w want) equal(o want) bool {
	return w.vni == o.vni && w.local == o.local && w.port == o.port && w.mtu == o.mtu && w.v6 == o.v6 && maps.Equal(w.fdb, o.fdb) && maps.Equal(w.neigh, o.neigh)
}

package nstest

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Capture is what crosses a namespace, each frame as often as it passes a device there.
type Capture struct {
	Frames atomic.Int64
	Marked atomic.Int64 // frames that hold the marker
	Parts  atomic.Int64 // fragments
	Big    atomic.Int64 // the largest frame of UDP to the port

	fd     int
	port   uint16
	marker []byte
	stop   context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex
	ports  map[uint16]int64 // UDP frames by destination
	inner  map[string]bool
}

// Capture listens to the wire.
func (f *Fabric) Capture(t testing.TB, port uint16, marker string) *Capture {
	t.Helper()
	return f.Wire.Capture(t, port, marker)
}

// Capture looks for a marker in everything, and closer at UDP to a port.
func (n *NS) Capture(t testing.TB, port uint16, marker string) *Capture {
	t.Helper()
	c := &Capture{done: make(chan struct{}), port: port, marker: []byte(marker), ports: map[uint16]int64{}, inner: map[string]bool{}}
	n.In(t, func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		if err == nil {
			err = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
		}
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	go func() {
		defer close(c.done)
		defer unix.Close(c.fd)
		b := make([]byte, 1<<17)
		for ctx.Err() == nil {
			if n, _, err := unix.Recvfrom(c.fd, b, 0); err == nil {
				c.see(b[:n])
			}
		}
	}()
	t.Cleanup(cancel)
	return c
}

func (c *Capture) see(b []byte) {
	c.Frames.Add(1)
	if len(c.marker) > 0 && bytes.Contains(b, c.marker) {
		c.Marked.Add(1)
	}
	if len(b) < 42 || b[12] != 0x08 || b[13] != 0 {
		return
	}
	if b[20]&0x3f != 0 || b[21] != 0 {
		c.Parts.Add(1)
	}
	if b[23] != unix.IPPROTO_UDP {
		return
	}
	to := binary.BigEndian.Uint16(b[36:])
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports[to]++
	if to == c.port {
		c.Big.Store(max(c.Big.Load(), int64(len(b))))
		if len(b) > 56 { // VXLAN: Ethernet 14, IP 20, UDP 8, VXLAN 8
			c.inner[net.HardwareAddr(b[50:56]).String()] = true
		}
	}
}

// End waits for what is on its way and stops. Nothing tells when nothing more comes, hence a time.
func (c *Capture) End() *Capture {
	time.Sleep(100 * time.Millisecond)
	c.stop()
	<-c.done
	return c
}

// UDP counts the frames to a port.
func (c *Capture) UDP(port uint16) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ports[port]
}

// Inner are the MACs that frames inside VXLAN to the port went to.
func (c *Capture) Inner() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for m := range c.inner {
		out = append(out, m)
	}
	return out
}

package lab

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// within runs f in a network namespace. What it opens stays there.
func within(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is in another network and ends with this goroutine
		fd, err := netns.GetFromName(ns)
		if err != nil {
			done <- fmt.Errorf("open network namespace %s: %w", ns, err)
			return
		}
		defer fd.Close()
		if err := netns.Set(fd); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Dialer makes connections of this process from a host.
type Dialer struct{ ns string }

// From is a dialer of a host.
func (l *Lab) From(h *Host) Dialer { return Dialer{netnsName(l.Name, h.Name)} }

// Dial connects to an IP address and port, as nats.CustomDialer and others want it.
func (d Dialer) Dial(network, address string) (c net.Conn, err error) {
	err = within(d.ns, func() error {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, address)
		return err
	})
	return c, err
}

// Files are the folders that hold everything of a host's disk.
func (l *Lab) Files(h *Host) string { return l.diskDir(h) }

// Root is the host's root folder as its own processes see it, with what is mounted there. The host is on.
func (h *Host) Root() string { return filepath.Join("/proc", fmt.Sprint(h.PID), "root") }

// PIDs are all processes on a host, as this process sees them.
func (l *Lab) PIDs(h *Host) ([]int, error) { return cgroupPIDs(l.Name, h.Name) }

// Capture hears every packet that crosses the fabric.
type Capture struct {
	fd      int
	packets int
	ended   sync.WaitGroup
	stop    func()
}

// Capture gives hear every packet from the fabric's cables, until Stop. The bytes are hear's for the call.
func (l *Lab) Capture(hear func(packet []byte)) (*Capture, error) {
	c := &Capture{}
	err := within(fabricName(l.Name), func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		return err
	})
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	}
	if err != nil {
		return nil, fmt.Errorf("capture the packets of lab %s: %w", l.Name, err)
	}
	stop := make(chan struct{})
	c.ended.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(c.fd, buf, 0)
			switch {
			case err == nil:
				c.packets++
				hear(buf[:n])
			case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				return // closed by Stop
			}
			select {
			case <-stop:
				if err != nil {
					return
				}
			default:
			}
		}
	})
	c.stop = sync.OnceFunc(func() { close(stop) })
	return c, nil
}

// Stop ends it when everything that was on its way has been heard, and returns how many packets were, and how many were lost because
// they came too fast.
func (c *Capture) Stop() (heard, lost int, err error) {
	c.stop()
	c.ended.Wait()
	st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil {
		lost = int(st.Drops)
	}
	return c.packets, lost, errors.Join(err, unix.Close(c.fd))
}

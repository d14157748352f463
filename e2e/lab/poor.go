package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A poor cable: what a host sends and hears comes late, and some of it never. The kernel's own queue for that (netem) is
// missing from many, so the frames go through this process: the host's port leaves the bridge, and between the two are
// sockets that hold every frame for its time.

// Quality is what a cable does to each frame, in each direction.
type Quality struct {
	Delay time.Duration
	Loss  float64 // of one, that a frame is lost
}

// poor is one cable that was made so.
type poor struct {
	fds   []int
	stop  chan struct{}
	ended sync.WaitGroup
}

// Impair makes a host's cable poor until Repair, the host's end, or that of this process.
func (l *Lab) Impair(ctx context.Context, host string, q Quality) (err error) {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if l.poor[host] != nil {
		return fmt.Errorf("the cable of %s is poor already", host)
	}
	fab, port, inner, outer := fabricName(l.Name), portName(h), "s-"+host, "b-"+host
	p := &poor{stop: make(chan struct{})}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the cable of %s poor: %w", host, errors.Join(err, p.close()))
		}
	}()
	// Neither end answers for the fabric: what it hears is for the host or from it.
	err = ip(ctx, fab, "link add "+inner+" type veth peer name "+outer,
		"link set "+port+" nomaster arp off", "link set "+inner+" up arp off", "link set "+outer+" up master br0")
	if err != nil {
		return err
	}
	err = within(fab, func() error {
		for _, name := range []string{port, inner} {
			fd, err := frames(name)
			if err != nil {
				return err
			}
			p.fds = append(p.fds, fd)
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.pump(p.fds[0], p.fds[1], q)
	p.pump(p.fds[1], p.fds[0], q)
	if l.poor == nil {
		l.poor = map[string]*poor{}
	}
	l.poor[host] = p
	return nil
}

// Repair puts a good cable in.
func (l *Lab) Repair(ctx context.Context, host string) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	p := l.poor[host]
	if p == nil {
		return nil
	}
	delete(l.poor, host)
	if err := errors.Join(p.close(), ip(ctx, fabricName(l.Name), "link del s-"+host, "link set "+portName(h)+" arp on master br0")); err != nil {
		return fmt.Errorf("repair the cable of %s: %w", host, err)
	}
	return nil
}

// endPoor ends what this process does for cables; the fabric itself is taken down by who calls.
func (l *Lab) endPoor() (err error) {
	for host, p := range l.poor {
		delete(l.poor, host)
		err = errors.Join(err, p.close())
	}
	return err
}

// frames is a socket for every frame of an interface, each with what the kernel needs to know of it beside it: checksums and
// segments that are left to the card.
func frames(name string) (fd int, err error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	all := uint16(unix.ETH_P_ALL)
	all = all<<8 | all>>8
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
		return 0, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1), unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifc.Index}))
	if err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// pump carries frames from one socket to the other.
func (p *poor) pump(from, to int, q Quality) {
	on := make(chan frame, 1<<16)
	p.ended.Go(func() {
		defer close(on)
		buf := make([]byte, 128<<10)
		for {
			n, _, err := unix.Recvfrom(from, buf, 0)
			switch {
			case err == nil && rand.Float64() >= q.Loss:
				on <- frame{time.Now().Add(q.Delay), append([]byte(nil), buf[:n]...)}
			case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				return // the host lost its power
			}
			select {
			case <-p.stop:
				return
			default:
			}
		}
	})
	p.ended.Go(func() {
		for f := range on { // in order: each is held as long as the one before it
			select {
			case <-p.stop:
			case <-time.After(time.Until(f.due)):
				// What a full queue or a missing peer does not take is lost, as on any cable.
				_, _ = unix.Write(to, f.b)
			}
		}
	})
}

type frame struct {
	due time.Time
	b   []byte
}

func (p *poor) close() error {
	close(p.stop)
	p.ended.Wait()
	var err error
	for _, fd := range p.fds {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

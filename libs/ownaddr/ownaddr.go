// Package ownaddr tells which addresses this machine has, and waits for one that it does not have yet.
package ownaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// All are the addresses of the machine's interfaces, IPv4 ones in their short form.
func All() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	var out []netip.Addr
	for _, l := range list {
		if a, ok := Of(l); ok {
			out = append(out, a)
		}
	}
	return out, nil
}

// Of is the address in what net tells of an interface.
func Of(a net.Addr) (netip.Addr, bool) {
	n, ok := a.(*net.IPNet)
	if !ok {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	return ip.Unmap(), ok
}

// Has reports whether an interface of this machine has the address. All of 127.0.0.0/8 is the loopback's, whichever of
// them it names.
func Has(a netip.Addr) (bool, error) {
	if a = a.Unmap(); a.IsLoopback() {
		return true, nil
	}
	all, err := All()
	return slices.Contains(all, a), err
}

// Bindable fails with EADDRNOTAVAIL when nothing on this machine could listen on the host's address. Any other failure is
// not the address's affair.
func Bindable(host string) error {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err == nil {
		_ = l.Close()
	}
	if Absent(err) {
		return err
	}
	return nil
}

// Absent: it failed because this machine does not have the address, which it may have later.
func Absent(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }

// Await tries again, every so often, for as long as what fails is an address that this machine does not have: after a
// reboot it may come later than the process. It returns what the last try did, or ctx's error.
func Await(ctx context.Context, every time.Duration, try func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := try()
		if !Absent(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

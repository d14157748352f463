package ownaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestHas(t *testing.T) {
	for a, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"192.0.2.1": false, "2001:db8::1": false, "::ffff:192.0.2.1": false, "0.0.0.0": false,
	} {
		if got, err := Has(netip.MustParseAddr(a)); err != nil || got != want {
			t.Errorf("%s: %v %v", a, got, err)
		}
	}
	if got, err := Has(netip.Addr{}); err != nil || got {
		t.Errorf("no address: %v %v", got, err)
	}
	all, err := All()
	if err != nil || slices.ContainsFunc(all, netip.Addr.Is4In6) {
		t.Errorf("%v %v", all, err)
	}
	for _, a := range all {
		if got, err := Has(a); err != nil || !got {
			t.Errorf("%s of %v: %v %v", a, all, got, err)
		}
	}
	if _, ok := Of(&net.UnixAddr{}); ok {
		t.Error("the address of a socket file")
	}
}

func TestBindable(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::"} {
		if err := Bindable(host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := Bindable("192.0.2.1"); !Absent(err) {
		t.Errorf("an address of another machine: %v", err)
	}
}

func TestAwait(t *testing.T) {
	absent, other := fmt.Errorf("listen: %w", syscall.EADDRNOTAVAIL), errors.New("in use")
	for _, last := range []error{nil, other} {
		tries := 0
		err := Await(t.Context(), time.Microsecond, func() error {
			if tries++; tries < 4 {
				return absent
			}
			return last
		})
		if !errors.Is(err, last) || tries != 4 {
			t.Errorf("%v after %d tries, want %v", err, tries, last)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := Await(ctx, time.Hour, func() error { cancel(); return absent }); !errors.Is(err, context.Canceled) {
		t.Errorf("told to end: %v", err)
	}
}

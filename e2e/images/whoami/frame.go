package main

import (
	"encoding/hex"
	"fmt"
	"net"
	"syscall"
)

// sendFrame sends one Ethernet frame, whatever it says of who sent it: a container needs no more than CAP_NET_RAW,
// which it has unless it is taken away.
func sendFrame(link, text string) error {
	frame, err := hex.DecodeString(text)
	if err != nil {
		return fmt.Errorf("read -frame: %w", err)
	}
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("find the interface %q: %w", link, err)
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, frame, 0, &syscall.SockaddrLinklayer{Ifindex: dev.Index}); err != nil {
		return fmt.Errorf("send %d bytes by %s: %w", len(frame), link, err)
	}
	return nil
}

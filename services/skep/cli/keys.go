package cli

import (
	"io"

	"golang.org/x/sys/unix"
)

// lookForKeys is how long one look for keys takes, in milliseconds: as long as letting go of them may.
const lookForKeys = 100

// keysOf passes on the keys that are pressed at a terminal, at once and unseen, until release, which leaves the terminal as it was.
// Ctrl-C stays what it is. Of what is no terminal there are none: nil.
func keysOf(in io.Reader) (keys <-chan byte, release func()) {
	fd, terminal := terminalOf(in)
	if !terminal {
		return nil, func() {}
	}
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, func() {}
	}
	mode := *before
	mode.Lflag &^= unix.ICANON | unix.ECHO
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &mode); err != nil {
		return nil, func() {}
	}
	pressed, stop, stopped := make(chan byte), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		readKeys(fd, pressed, stop)
	}()
	return pressed, func() {
		close(stop)
		<-stopped
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, before) // nothing left to do about a terminal that is gone
	}
}

// readKeys reads only what is there, so that it takes nothing from whoever reads the terminal next.
func readKeys(fd int, pressed chan<- byte, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, lookForKeys)
		if err == unix.EINTR || err == nil && n == 0 {
			continue
		}
		key := make([]byte, 1)
		if n, err = unix.Read(fd, key); err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n == 0 {
			return // the terminal is gone
		}
		select {
		case pressed <- key[0]:
		case <-stop:
			return
		}
	}
}

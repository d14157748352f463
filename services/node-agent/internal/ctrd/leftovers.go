package ctrd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// leftovers finds what a command in a container has started: processes of its session and those with its mark in their
// environment, wherever their parents went. One that empties its environment and begins a session of its own is not found
// and is the container's then.
type leftovers struct {
	mark      string // NAME=value, as far as it is known: what begins with it carries the mark
	since     uint64 // when the command began, in the kernel's ticks; older processes are not looked into
	processes func() []int
}

const (
	// killRounds and killPause bound how long a command that starts processes faster than they die is run after.
	killRounds = 100
	killPause  = 2 * time.Millisecond
	// unsureRounds bounds how long a process is looked at again whose environment reads empty: it has none, or it is just
	// becoming another program.
	unsureRounds = 10
)

// kill ends the command with process id pid and all it started, and returns once they are gone. 0: what carries the mark.
func (l leftovers) kill(pid uint32) {
	for round := range killRounds {
		again := false
		for _, p := range l.processes() {
			switch l.owns(p, int(pid)) {
			case owned:
				again = true
				_ = unix.Kill(p, unix.SIGKILL) // it may just have ended
			case unsure:
				again = again || pid != 0 && round < unsureRounds
			}
		}
		if !again {
			return
		}
		time.Sleep(killPause)
	}
}

type owner int

const (
	foreign owner = iota
	owned
	unsure
)

// owns tells whether a process is alive and the command's.
func (l leftovers) owns(p, session int) owner {
	st, ok := statOf(p)
	if !ok || st.dead || st.began < l.since {
		return foreign
	}
	if session > 1 && st.session == session {
		return owned
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p))
	switch {
	case err != nil:
		return foreign // it has ended
	case len(env) == 0:
		return unsure
	case bytes.Contains(append([]byte{0}, env...), []byte("\x00"+l.mark)):
		return owned
	}
	return foreign
}

type procStat struct {
	dead    bool
	session int
	began   uint64 // ticks since the boot
}

func statOf(pid int) (procStat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, false
	}
	// pid (name) state ppid pgrp session …; the name may hold anything. The time is the 22nd field of all.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return procStat{}, false
	}
	st := procStat{dead: f[0][0] == 'Z' || f[0][0] == 'X'}
	if st.session, err = strconv.Atoi(string(f[3])); err != nil {
		return procStat{}, false
	}
	st.began, err = strconv.ParseUint(string(f[19]), 10, 64)
	return st, err == nil
}

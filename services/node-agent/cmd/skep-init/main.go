// Command skep-init is process 1 of a container that asks for an init: it starts the command, passes signals on
// to it, reaps orphans, and ends as the command ended. It is bind-mounted at /dev/init; it owns nothing else.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	os.Exit(run(args))
}

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "skep-init: no command given")
		return 2
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "skep-init: %v\n", err)
		if errors.Is(err, os.ErrPermission) {
			return 126
		}
		return 127
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	attr := &os.ProcAttr{Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if isTerminal(0) {
		// The command's group must be the terminal's, or its reads stop it.
		attr.Sys.Foreground, attr.Sys.Ctty = true, 0
	}
	p, err := os.StartProcess(path, args, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "skep-init: start %s: %v\n", path, err)
		return 126
	}
	for s := range signals {
		switch s {
		case syscall.SIGCHLD:
			if code, ended := reap(p.Pid); ended {
				return code
			}
		case syscall.SIGURG: // Go's own scheduling
		case syscall.SIGTTIN, syscall.SIGTTOU:
		default:
			_ = syscall.Kill(p.Pid, s.(syscall.Signal)) // it may just have ended; SIGCHLD follows
		}
	}
	return 0
}

// reap takes every child that has ended and reports the main one's exit.
func reap(main int) (code int, ended bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return code, ended
		}
		if pid != main {
			continue
		}
		ended = true
		if ws.Signaled() {
			code = 128 + int(ws.Signal())
		} else {
			code = ws.ExitStatus()
		}
	}
}

func isTerminal(fd uintptr) bool {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPGRP, uintptr(tiocPointer()))
	return errno == 0
}

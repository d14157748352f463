package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock sets the clock of every process that runs on a host now: ahead of the machine's by offset, behind it when negative,
// right again by 0. What counts time that passed, timers among it, goes on as before, as when somebody sets a clock.
// Processes that start later, and the times of files, are the machine's.
//
// All hosts of a lab have one kernel, and a time namespace moves no wall clock. So the code by which a process asks the
// kernel for the time without a system call (vDSO, see vdso(7)) is written over in the process itself.
func (l *Lab) Clock(ctx context.Context, host string, offset time.Duration) error {
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("set the clock of %s: not written for %s", host, runtime.GOARCH)
	}
	pids, err := l.PIDs(h)
	if err != nil {
		return fmt.Errorf("set the clock of %s: %w", host, err)
	}
	for _, pid := range pids {
		if err := setClock(ctx, pid, offset); err != nil && !gone(err) {
			return fmt.Errorf("set the clock of %s: process %d: %w", host, pid, err)
		}
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, errNoVDSO)
}

// errNoVDSO is a process that has ended, or is just becoming another program.
var errNoVDSO = errors.New("it has no vDSO")

// clockCode is clock_gettime(2) as a function that takes the clock in edi and a timespec in rsi. It asks the kernel and adds
// to the seconds of CLOCK_REALTIME, whose number is 0.
func clockCode(offset time.Duration) []byte {
	code := []byte{
		0xb8, unix.SYS_CLOCK_GETTIME, 0, 0, 0, // mov eax, SYS_CLOCK_GETTIME
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi
		0x75, 0x0d, // jne ret
		0x48, 0xb9, // mov rcx, the seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(int64(offset/time.Second)))
	return append(code,
		0x48, 0x01, 0x0e, // add [rsi], rcx
		0xc3, // ret
	)
}

// setClock writes over the clock of one process while it stands still.
func setClock(ctx context.Context, pid int, offset time.Duration) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	from, to, err := vdsoOf(pid)
	if err != nil {
		return err
	}
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, int64(from)); err != nil {
		return err
	}
	at, err := clockSymbol(image)
	if err != nil {
		return err
	}
	at += from
	code := clockCode(offset)
	wake, err := standStill(ctx, pid, at, at+uint64(len(code)))
	if err != nil {
		return err
	}
	defer wake()
	_, err = mem.WriteAt(code, int64(at))
	return err
}

// vdsoOf returns where a process has its vDSO.
func vdsoOf(pid int) (from, to uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err = fmt.Sscanf(line, "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, errNoVDSO
}

// clockSymbol finds clock_gettime in a vDSO: its offset.
func clockSymbol(image []byte) (uint64, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("read its vDSO: %w", err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("read its vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" {
			return s.Value, nil
		}
	}
	return 0, errors.New("its vDSO has no __vdso_clock_gettime")
}

// standStill stops a process where none of its threads is at an address in [from, to). wake lets it go on, unless it stood
// before.
func standStill(ctx context.Context, pid int, from, to uint64) (wake func(), err error) {
	for {
		stood, err := stopped(pid)
		if err != nil {
			return nil, err
		}
		wake := func() {
			if !stood {
				_ = unix.Kill(pid, unix.SIGCONT) // it may have ended
			}
		}
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return nil, err
		}
		for !stood {
			if still, err := stopped(pid); err != nil {
				return nil, err
			} else if still {
				break
			}
			select {
			case <-ctx.Done():
				wake()
				return nil, ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
		inside, err := inCode(pid, from, to)
		if err == nil && !inside {
			return wake, nil
		}
		wake()
		if err != nil {
			return nil, err
		}
		if stood {
			return nil, errors.New("it stands in the middle of asking for the time")
		}
	}
}

// stopped says whether every thread of a process is stopped by a signal.
func stopped(pid int) (bool, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false, err
	}
	if len(files) == 0 {
		return false, unix.ESRCH
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		state, ok := bytes.CutPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" "))
		if !ok || len(state) == 0 || !strings.ContainsRune("TtZX", rune(state[0])) {
			return false, nil
		}
	}
	return true, nil
}

// inCode says whether a thread of a stopped process is at an address in [from, to).
func inCode(pid int, from, to uint64) (bool, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil {
		return false, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		words := strings.Fields(string(b))
		if len(words) == 0 {
			continue
		}
		at, err := strconv.ParseUint(words[len(words)-1], 0, 64) // the last is where it is, in a system call or not
		if err == nil && at >= from && at < to {
			return true, nil
		}
	}
	return false, nil
}

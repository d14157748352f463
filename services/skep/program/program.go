// Package program says what a file is that may be a build of skep. It runs nothing that does not call itself skep inside.
package program

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/printable"
)

const (
	// Most is the largest program that is taken, bytes.
	Most = 256 << 20
	// VersionMost is the longest version a program may have, bytes.
	VersionMost = 80

	path = "skep.dev/services/skep/cmd/skep" // of the command, as the linker notes it
	// runWithin is how long a program may take to say its version, outputMost how much it may say.
	runWithin  = 10 * time.Second
	outputMost = 64 << 10
	// busyPause lies between two tries of a file that a process forked meanwhile has open for a moment.
	busyPause = 20 * time.Millisecond
)

// Build is a build of skep.
type Build struct {
	Version, OS, Arch string
	SHA256            [sha256.Size]byte
	Size              int64
}

// Read finds out what a file is: skep, and of which version. The file is run with `version`, within 10 s.
func Read(ctx context.Context, file string) (*Build, error) {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, fault.Invalid("read the program: %v", err)
	case !st.Mode().IsRegular():
		return nil, fault.Invalid("%s is no file", file)
	case st.Size() > Most:
		return nil, fault.Invalid("%s has %d MiB: no build of skep has more than %d", file, st.Size()>>20, Most>>20)
	}
	b := &Build{}
	if b.SHA256, b.Size, err = Sum(file); err != nil {
		return nil, err
	}
	if b.Version, b.OS, b.Arch, err = Identify(ctx, file); err != nil {
		return nil, err
	}
	return b, nil
}

// Sum is the SHA-256 of a file and its size in bytes.
func Sum(file string) (sum [sha256.Size]byte, size int64, _ error) {
	f, err := os.Open(file)
	if err != nil {
		return sum, 0, fmt.Errorf("read the program: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return sum, 0, fmt.Errorf("read the program: %w", err)
	}
	return [sha256.Size]byte(h.Sum(nil)), size, nil
}

// Identify has a file say its version, operating system and architecture. What is not skep is refused without being run.
func Identify(ctx context.Context, file string) (version, os, arch string, _ error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil || info.Path != path {
		return "", "", "", fault.Invalid("%s is not skep: name the program that `make build` makes as bin/skep", file)
	}
	out, err := ask(ctx, file)
	if errors.Is(err, syscall.ENOEXEC) {
		return "", "", "", fault.Invalid("%s is skep for another kind of machine than this one", file)
	}
	if err != nil {
		return "", "", "", fault.Invalid("%s does not start here: %v", file, err)
	}
	var v struct {
		Client struct{ Version, Os, Arch string }
	}
	if err := json.Unmarshal(first(out), &v); err != nil || !Valid(v.Client.Version) {
		return "", "", "", fault.Invalid("%s does not say its version: %q", file, printable.Cut(string(out), 200))
	}
	return v.Client.Version, v.Client.Os, v.Client.Arch, nil
}

// Valid reports whether a text can be a program's version.
func Valid(version string) bool {
	return version != "" && len(version) <= VersionMost && strings.IndexFunc(version, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// first is the first element of what may be a list of one.
func first(out []byte) []byte {
	var list []json.RawMessage
	if json.Unmarshal(out, &list) == nil && len(list) == 1 {
		return list[0]
	}
	return out
}

// ask runs a program with `version`. It asks no daemon, and gets nothing of our environment.
func ask(ctx context.Context, file string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runWithin)
	defer cancel()
	for {
		out, errs := &bounded{}, &bounded{}
		cmd := exec.CommandContext(ctx, file, "version", "-f", "json")
		cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = "/", out, errs, time.Second
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "SKEP_RUN_DIR=/nonexistent", "SKEP_CONTEXT=default"}
		err := cmd.Run()
		switch {
		case err == nil:
			return out.Bytes(), nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("it does not say its version within %s", runWithin)
		case errors.Is(err, syscall.ETXTBSY):
			time.Sleep(busyPause)
		case errors.As(err, new(*exec.ExitError)) && errs.Len() > 0:
			return nil, fmt.Errorf("%w: %s", err, printable.Cut(strings.TrimSpace(errs.String()), 200))
		default:
			return nil, err
		}
	}
}

// bounded keeps the beginning of what is written.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > outputMost {
		return 0, fmt.Errorf("it says more than %d bytes", outputMost)
	}
	return b.Buffer.Write(p)
}

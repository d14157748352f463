package upgrade

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/diskspace"
	"skep.dev/libs/fault"
	"skep.dev/services/skep/program"
)

// spare is what stays free, bytes, on the file system of the program: the node goes on there.
const spare = 64 << 20

// Offer is a program that is to be put in place.
type Offer struct {
	From, To    string // versions
	SHA256      []byte
	Size        int64 // bytes
	By, Address string
}

// Check refuses an offer before its bytes travel: nothing was changed.
func (s Site) Check(o Offer) error {
	switch {
	case !program.Valid(o.To):
		return fault.Invalid("upgrade: %q is no version", o.To)
	case len(o.SHA256) != sha256.Size:
		return fault.Invalid("upgrade: the program is announced without its SHA-256")
	case o.Size <= 0 || o.Size > program.Most:
		return fault.Invalid("upgrade: a program of %d bytes is not taken: no build of skep has more than %d MiB", o.Size, program.Most>>20)
	case os.Getpid() == 1:
		return fault.Conflict("upgrade: the daemon is the first process of a container, which ends with it: start a container of a newer image instead")
	}
	dir := filepath.Dir(s.Program)
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fault.Conflict("upgrade: %s cannot be written: %v; replace %s by the means it was installed with", dir, err, s.Program)
	}
	need := uint64(o.Size) + spare
	if linkable, err := s.unreplaced(); err != nil {
		return err
	} else if !linkable {
		st, err := os.Stat(s.Running)
		if err != nil {
			return fmt.Errorf("upgrade: look at the running program: %w", err)
		}
		need += uint64(st.Size())
	}
	free, _, err := diskspace.Of(dir)
	if err != nil {
		return fmt.Errorf("upgrade: look at the disk of %s: %w", dir, err)
	}
	if free < need {
		return fault.Exhausted("upgrade: %d MiB are free on the disk of %s, and %d are needed: make room", free>>20, dir, (need+1<<20-1)>>20)
	}
	return nil
}

// unreplaced reports whether the program in place is the one that runs.
func (s Site) unreplaced() (bool, error) {
	a, err := os.Stat(s.Running)
	if err != nil {
		return false, fmt.Errorf("upgrade: look at the running program: %w", err)
	}
	b, err := os.Stat(s.Program)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("upgrade: look at the program: %w", err)
	}
	return os.SameFile(a, b), nil
}

// Stage puts the new program beside the old one and keeps the running one as PROGRAM.old. Nothing is replaced yet: Watch
// does that. An error leaves the node as it was.
func (s Site) Stage(ctx context.Context, o Offer, bytes io.Reader) (err error) {
	if err := s.Check(o); err != nil {
		return err
	}
	rec := &Record{From: o.From, To: o.To, Step: Staged, SHA256: hex.EncodeToString(o.SHA256), By: o.By, Address: o.Address, Began: time.Now().UTC()}
	if err := s.save(rec); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			rec.Told = true // who asked gets the answer
			err = errors.Join(err, s.remove(), s.end(rec, Undone, err))
		}
	}()
	s.passing("recorded")
	if err := s.receive(o, bytes); err != nil {
		return err
	}
	s.passing("received")
	version, err := s.identify(ctx)
	if err != nil {
		return fault.Invalid("upgrade: the new program does not run on this machine: %v", err)
	}
	if version != o.To {
		return fault.Invalid("upgrade: the program is version %s and was announced as %s", version, o.To)
	}
	if err := s.keep(); err != nil {
		return fmt.Errorf("upgrade: keep the old program: %w", err)
	}
	s.passing("kept")
	return nil
}

// receive writes the new program beside the old one, with its owner and mode. It is on disk, and has the announced sum.
func (s Site) receive(o Offer, bytes io.Reader) error {
	if err := s.remove(); err != nil {
		return err
	}
	f, err := os.OpenFile(s.fresh(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("upgrade: write the new program: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(bytes, o.Size+1))
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		err = fault.Exhausted("upgrade: write the new program: %v", err)
	case err != nil:
		err = fmt.Errorf("upgrade: receive the new program: %w", err)
	case n != o.Size || string(h.Sum(nil)) != string(o.SHA256):
		err = fault.Invalid("upgrade: what came is not the program that was announced: %d bytes of %d, with SHA-256 %x", n, o.Size, h.Sum(nil))
	default:
		err = errors.Join(s.alike(f), f.Sync())
	}
	return errors.Join(err, f.Close())
}

// alike gives a file the owner and the mode of the program.
func (s Site) alike(f *os.File) error {
	mode, uid, gid := fs.FileMode(0o755), 0, 0
	st, err := os.Stat(s.Running)
	if err != nil {
		return fmt.Errorf("upgrade: look at the running program: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		mode, uid, gid = st.Mode().Perm(), int(sys.Uid), int(sys.Gid)
	}
	if err := errors.Join(f.Chown(uid, gid), f.Chmod(mode)); err != nil {
		return fmt.Errorf("upgrade: make the new program like the old one: %w", err)
	}
	return nil
}

func (s Site) identify(ctx context.Context) (string, error) {
	if s.Identify != nil {
		return s.Identify(s.fresh())
	}
	version, _, _, err := program.Identify(ctx, s.fresh())
	return version, err
}

// keep makes PROGRAM.old the program that runs now: what is known to run. The one in place may have been replaced by hand.
func (s Site) keep() error {
	next := s.Old() + ".upgrade"
	if err := gone(os.Remove(next)); err != nil {
		return err
	}
	same, err := s.unreplaced()
	if err != nil {
		return err
	}
	if !same || os.Link(s.Program, next) != nil { // some file systems have no links
		if err := s.copyRunning(next); err != nil {
			return errors.Join(err, gone(os.Remove(next)))
		}
	}
	if err := os.Rename(next, s.Old()); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(s.Program))
}

func (s Site) copyRunning(to string) error {
	from, err := os.Open(s.Running)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = errors.Join(s.alike(f), f.Sync())
	}
	return errors.Join(err, f.Close())
}

// remove takes away a new program that was not put in place.
func (s Site) remove() error {
	if err := gone(os.Remove(s.fresh())); err != nil {
		return fmt.Errorf("upgrade: remove what is left of the last one: %w", err)
	}
	return nil
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

package vault

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/unlockkey"
)

// The master key rests in the vault's directory: in clear in master.key, or, with autolock, sealed under the unlock key in
// master.sealed. Each file is whole or not there, and the old one goes only when the new one is on disk and was read back.
// Both are there after a crash between: then master.key is good, and the one that is too many goes later (lock_plan.go).

const (
	masterFile = "master.key"
	sealedFile = "master.sealed"
)

// disk is the directory.
type disk struct {
	dir string
	log *zap.Logger
	// at is called before each step that changes something; a test stops there.
	at func(step string) error
}

func (d disk) path(name string) string { return filepath.Join(d.dir, name) }

func (d disk) step(name string) error {
	if d.at == nil {
		return nil
	}
	return d.at(name)
}

// resting is what the directory has.
type resting struct {
	master []byte        // from master.key, nil = it is not there, or overwritten
	sealed *sealedMaster // nil = it is not there
	broken bool          // master.key is there and holds no key, beside a good master.sealed
}

// sealedMaster is the content of master.sealed: a line that says in clear which unlock key opens it, and what that seals.
type sealedMaster struct {
	info *skepv1.UnlockKeyInfo
	head []byte // the line, which is bound to what is sealed
	box  []byte
}

// read reads what there is. That nothing opens without an unlock key is no error.
func (d disk) read() (resting, error) {
	var r resting
	sealed, serr := d.readSealed()
	master, merr := d.readClear()
	noSealed, noClear := errors.Is(serr, fs.ErrNotExist), errors.Is(merr, fs.ErrNotExist)
	var malformed *malformedError
	switch {
	case noSealed && noClear:
		return r, &noMasterError{d.dir}
	case merr != nil && !noClear && (serr != nil || !errors.As(merr, &malformed)):
		return r, merr
	case serr != nil && !noSealed && noClear:
		return r, serr
	}
	if serr != nil && !noSealed {
		d.log.Warn("a file that is not needed cannot be read", zap.Error(serr))
	}
	r.master, r.sealed, r.broken = master, sealed, merr != nil && !noClear
	return r, nil
}

// noMasterError: the directory has no master key in any form. A manager that is new gets it from another (master_ask.go).
type noMasterError struct{ dir string }

func (e *noMasterError) Error() string {
	return fmt.Sprintf("read the master key: neither %s nor %s is in %s: restore the directory from a backup; without the key nothing that the vault keeps can be opened "+
		"(to begin a new cluster instead: skep leave --force)", masterFile, sealedFile, e.dir)
}

// malformedError: the file is there, ours, and does not hold a key.
type malformedError struct{ path string }

func (e *malformedError) Error() string {
	return fmt.Sprintf("read the master key: %s does not hold %d bytes in hexadecimal: it was altered or cut off; restore it from a backup", e.path, masterSize)
}

// readClear reads master.key. One that others may read or have written is refused: whoever opens the master key opens all.
func (d disk) readClear() ([]byte, error) {
	path := d.path(masterFile)
	st, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("read the master key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read the master key: %s is not a plain file: put the file itself there", path)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != uint32(os.Geteuid()) {
		return nil, fmt.Errorf("read the master key: %s belongs to user %d, not to the one that skep runs as (%d), who could have replaced it: if it is the right file, chown %d %s",
			path, sys.Uid, os.Geteuid(), os.Geteuid(), path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read the master key: others may read or write %s (mode %04o): chmod 600 %s; if somebody may have read it, remove the secrets from the systems they open and make new ones",
			path, st.Mode().Perm(), path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the master key: %w", err)
	}
	defer clear(text)
	text = bytes.TrimSpace(text)
	key := make([]byte, hex.DecodedLen(len(text)))
	if n, err := hex.Decode(key, text); err != nil || n != masterSize {
		return nil, &malformedError{path}
	}
	return key, nil
}

func (d disk) readSealed() (*sealedMaster, error) {
	path := d.path(sealedFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the sealed master key: %w", err)
	}
	s, err := parseSealed(text)
	if err != nil {
		return nil, fmt.Errorf("read the sealed master key: %s: %w; restore it from a backup", path, err)
	}
	return s, nil
}

func parseSealed(text []byte) (*sealedMaster, error) {
	head, rest, ok := bytes.Cut(text, []byte("\n"))
	s := &sealedMaster{info: &skepv1.UnlockKeyInfo{}, head: bytes.Clone(head)}
	if !ok || (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(head, s.info) != nil || s.info.Id == "" {
		return nil, errors.New("it does not begin with which unlock key opens it: it was altered or cut off")
	}
	var err error
	if s.box, err = base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(string(rest))); err != nil || len(s.box) == 0 {
		return nil, errors.New("what is sealed in it was altered or cut off")
	}
	return s, nil
}

// open opens it with an unlock key.
func (s *sealedMaster) open(k unlockkey.Key) ([]byte, error) {
	master, err := k.Open(s.box, s.beside())
	if err == nil && len(master) != masterSize {
		err = unlockkey.ErrOpen
	}
	return master, err
}

func (s *sealedMaster) beside() []byte { return append([]byte("master.sealed\n"), s.head...) }

// writeSealed writes master.sealed and makes sure that it opens, before anybody relies on it.
func (d disk) writeSealed(k unlockkey.Key, info *skepv1.UnlockKeyInfo, master []byte) error {
	head, err := protojson.Marshal(info)
	if err != nil {
		return fmt.Errorf("seal the master key: %w", err)
	}
	s := &sealedMaster{info: info, head: head}
	if s.box, err = k.Seal(master, s.beside()); err != nil {
		return fmt.Errorf("seal the master key: %w", err)
	}
	if err := d.step("write " + sealedFile); err != nil {
		return err
	}
	text := string(head) + "\n" + base64.StdEncoding.EncodeToString(s.box) + "\n"
	if err := atomicfile.WriteSync(d.path(sealedFile), []byte(text)); err != nil {
		return fmt.Errorf("seal the master key: %w", err)
	}
	back, err := d.readSealed()
	if err != nil {
		return err
	}
	got, err := back.open(k)
	defer clear(got)
	if err != nil || !bytes.Equal(got, master) {
		return fmt.Errorf("seal the master key: what was written to %s does not open again (%v): is the disk damaged?", d.path(sealedFile), err)
	}
	return nil
}

// dropClear removes the master key in clear. It is overwritten first, which reaches its blocks on a plain disk and not on
// an SSD or a file system that writes elsewhere (docs/autolock.md).
func (d disk) dropClear() error {
	leftovers, _ := filepath.Glob(d.path(masterFile + ".new-*")) // the pattern is well formed
	for _, path := range append(leftovers, d.path(masterFile)) {
		if err := d.step("overwrite " + filepath.Base(path)); err != nil {
			return err
		}
		if err := overwrite(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the master key in clear: %w", err)
		}
		if err := d.step("remove " + filepath.Base(path)); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the master key in clear: %w", err)
		}
	}
	if err := atomicfile.SyncDir(d.dir); err != nil {
		return fmt.Errorf("remove the master key in clear: %w", err)
	}
	return nil
}

// overwrite puts dashes in the place of a file's content.
func overwrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte("-"), int(st.Size())), 0)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// writeClear writes master.key.
func (d disk) writeClear(master []byte) error {
	if err := d.step("write " + masterFile); err != nil {
		return err
	}
	if err := atomicfile.WriteSync(d.path(masterFile), []byte(hex.EncodeToString(master)+"\n")); err != nil {
		return fmt.Errorf("store the master key in clear: %w", err)
	}
	got, err := d.readClear()
	defer clear(got)
	if err == nil && !bytes.Equal(got, master) {
		err = fmt.Errorf("store the master key in clear: %s reads back as something else: is the disk damaged?", d.path(masterFile))
	}
	return err
}

// dropSealed removes master.sealed.
func (d disk) dropSealed() error {
	if err := d.step("remove " + sealedFile); err != nil {
		return err
	}
	leftovers, _ := filepath.Glob(d.path(sealedFile + ".new-*")) // the pattern is well formed
	for _, path := range append(leftovers, d.path(sealedFile)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the sealed master key: %w", err)
		}
	}
	return atomicfile.SyncDir(d.dir)
}

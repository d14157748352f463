package backup

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/diskspace"
	pb "skep.dev/proto/skep/v1"
)

// A shelf is the folder of a manager's data directory in which its scheduled backups lie. The name of a file is the time at
// which it was due, so what is there is made once. A file has its name only when it is whole and on disk.

const (
	// ShelfBytes is what the files may take together; the newest stays whatever it takes.
	ShelfBytes = 16 << 30
	// ShelfSpare is the space that they leave free on their file system: the manager's store lies there, too.
	ShelfSpare = 256 << 20
	// spareEvery is how often that is looked at.
	spareEvery = 4 << 20

	shelfTime  = "20060102-150405"
	unfinished = ".unfinished"
)

var shelfName = regexp.MustCompile(`^skep-[0-9a-z]{1,25}-([0-9]{8}-[0-9]{6})\.backup$`)

// FileName is what a backup of a cluster is called that is made, or due, at a time.
func FileName(cluster string, at time.Time) string {
	return fmt.Sprintf("skep-%s-%s.backup", cluster[:min(8, len(cluster))], at.UTC().Format(shelfTime))
}

// Shelf is such a folder.
type Shelf struct {
	Dir string
	// Bytes and Spare are ShelfBytes and ShelfSpare, less in tests.
	Bytes, Spare uint64
}

// ShelfIn is the shelf of a node's data directory.
func ShelfIn(dataDir string) *Shelf {
	return &Shelf{Dir: filepath.Join(dataDir, ShelfName), Bytes: ShelfBytes, Spare: ShelfSpare}
}

// ShelfName is the folder's name in a data directory.
const ShelfName = "backups"

// Shelved is a file on a shelf.
type Shelved struct {
	Name   string
	Due    time.Time
	Size   uint64
	Header *pb.BackupHeader
}

// Has reports whether a file is there.
func (s *Shelf) Has(name string) bool {
	_, err := os.Lstat(filepath.Join(s.Dir, name))
	return err == nil
}

// List is what lies there, the newest first. What is no backup is left out.
func (s *Shelf) List() ([]Shelved, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the scheduled backups: %w", err)
	}
	var out []Shelved
	for _, e := range entries {
		m := shelfName.FindStringSubmatch(e.Name())
		if m == nil || !e.Type().IsRegular() {
			continue
		}
		due, err := time.Parse(shelfTime, m[1])
		if err != nil {
			continue
		}
		k := Shelved{Name: e.Name(), Due: due}
		if k.Header, k.Size = Peek(filepath.Join(s.Dir, e.Name())); k.Header != nil {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b Shelved) int { return cmp.Or(b.Due.Compare(a.Due), cmp.Compare(a.Name, b.Name)) })
	return out, nil
}

// Peek is a backup's beginning and its size, nil for a file that is none.
func Peek(path string) (*pb.BackupHeader, uint64) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0
	}
	defer f.Close()
	file, err := Open(f)
	if err != nil {
		return nil, 0
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0
	}
	return file.Header, uint64(st.Size())
}

// Find is the path of what people name: a file, or, where there is none of that name, one on the shelf.
func (s *Shelf) Find(name string) string {
	if strings.ContainsRune(name, '/') || !shelfName.MatchString(name) {
		return name
	}
	if _, err := os.Lstat(name); err == nil {
		return name
	}
	if s.Has(name) {
		return filepath.Join(s.Dir, name)
	}
	return name
}

// Put makes a file: write gives its content, check reads that again before it counts. A file that cannot be finished is
// taken away. Who may read the folder is root alone.
func (s *Shelf) Put(name string, write func(io.Writer) error, check func(io.Reader) error) (size uint64, err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return 0, fmt.Errorf("make the folder of scheduled backups: %w", err)
	}
	if err := s.room(0); err != nil {
		return 0, err
	}
	path := filepath.Join(s.Dir, name)
	f, err := os.OpenFile(path+unfinished, os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(path + unfinished)
		}
	}()
	w := &sparing{shelf: s, w: f}
	if err := write(w); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read the backup again: %w", err)
	}
	if err := check(f); err != nil {
		return 0, fmt.Errorf("read the backup again: %w", err)
	}
	if err := os.Rename(path+unfinished, path); err != nil {
		return 0, fmt.Errorf("write the backup: %w", err)
	}
	return w.n, atomicfile.SyncDir(s.Dir)
}

// sparing leaves the space free that others need.
type sparing struct {
	shelf  *Shelf
	w      io.Writer
	n      uint64
	looked uint64
}

func (w *sparing) Write(b []byte) (int, error) {
	if w.n-w.looked >= spareEvery {
		w.looked = w.n
		if err := w.shelf.room(w.n); err != nil {
			return 0, err
		}
	}
	n, err := w.w.Write(b)
	if w.n += uint64(n); err != nil {
		err = fmt.Errorf("write the backup: %w", err)
	}
	return n, err
}

// room looks whether a file that has some bytes may grow.
func (s *Shelf) room(have uint64) error {
	free, _, err := diskspace.Of(s.Dir)
	if err != nil {
		return fmt.Errorf("look how much space there is for a backup: %w", err)
	}
	switch {
	case free < s.Spare:
		return fmt.Errorf("write the backup: %d MiB are free on the file system of %s, and %d MiB stay free for the manager's store: make room there", free>>20, s.Dir, s.Spare>>20)
	case have > s.Bytes:
		return fmt.Errorf("write the backup: it is larger than the %d MiB that scheduled backups may take", s.Bytes>>20)
	}
	return nil
}

// Prune takes away the oldest files, until there are as many as may be kept and they take no more than they may. What it
// may not take away counts, and stays.
func (s *Shelf) Prune(keep int, may func(Shelved) bool) (gone []string, err error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	var sum uint64
	for _, k := range all {
		sum += k.Size
	}
	for left, i := len(all), len(all)-1; i > 0 && (left > keep || sum > s.Bytes); i-- {
		if !may(all[i]) {
			continue
		}
		if err := os.Remove(filepath.Join(s.Dir, all[i].Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fmt.Errorf("remove an old backup: %w", err)
		}
		gone, left, sum = append(gone, all[i].Name), left-1, sum-all[i].Size
	}
	return gone, nil
}

// Clear takes away what a maker left that died half-way. Who holds the shelf calls it.
func (s *Shelf) Clear() error {
	left, _ := filepath.Glob(filepath.Join(s.Dir, "*"+unfinished)) // the pattern is well formed
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an unfinished backup: %w", err)
		}
	}
	return nil
}

// Hold keeps other makers away until release is called; ok is false while somebody else holds it.
func (s *Shelf) Hold() (release func(), ok bool, err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, false, fmt.Errorf("make the folder of scheduled backups: %w", err)
	}
	d, err := os.Open(s.Dir)
	if err != nil {
		return nil, false, fmt.Errorf("hold the folder of scheduled backups: %w", err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("hold the folder of scheduled backups: %w", err)
	}
	return func() { _ = d.Close() }, true, nil
}

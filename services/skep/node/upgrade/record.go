// Package upgrade puts another build of skep in the place of a node's program, and the old one back when the new one does
// not start.
//
// It owns three files beside each other, PROGRAM, PROGRAM.upgrade and PROGRAM.old, and the record upgrade.json in the data
// directory. It refuses what does not have the sum that was announced, what is not skep, and what does not say its version
// on this machine, before anything is replaced.
// Failure story: PROGRAM is replaced by a rename alone, so that it is a whole program at every moment; the watcher that
// replaces it and restarts the daemon is a process of the old program, and one that dies is started again by the daemon
// (Site.Resume), so that a new program that does not come up is taken back also then.
package upgrade

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"skep.dev/libs/atomicfile"
	"skep.dev/services/skep/program"
)

// Step is how far an upgrade is.
type Step string

// The steps of an upgrade.
const (
	Staged Step = "staged" // the new program comes, or lies beside the old one; nothing was replaced
	Placed Step = "placed" // it is in the old one's place
	Done   Step = "done"
	Undone Step = "undone" // the old program is in its place
)

// Record is <data-dir>/upgrade.json: the node's last upgrade.
type Record struct {
	From    string    `json:"from"`
	To      string    `json:"to"`
	Step    Step      `json:"step"`
	SHA256  string    `json:"sha256"` // of the new program, hexadecimal
	By      string    `json:"by"`     // who asked for it, and from where
	Address string    `json:"address"`
	Began   time.Time `json:"began"`
	Error   string    `json:"error,omitempty"` // why it was undone
	Told    bool      `json:"told,omitempty"`  // somebody knows that it was undone
}

// Sum is the new program's SHA-256.
func (r *Record) Sum() []byte {
	b, _ := hex.DecodeString(r.SHA256) // what is no sum is equal to none
	return b
}

// Site is where a node's program is.
type Site struct {
	Program string // the path from which the daemon is started
	Running string // the program that runs now, which may have been replaced meanwhile: /proc/self/exe
	Data    string // the node's data directory

	// Identify has a file say its version; nil = program.Identify. Passing is called as each step is done.
	Identify func(file string) (version string, _ error)
	Passing  func(point string)
}

// Here is the site of this process, whose program is found by the path it was started from. It is called before anything
// can replace that.
func Here(data string) (Site, error) {
	self, err := os.Executable()
	if err != nil {
		return Site{}, fmt.Errorf("find our own program: %w", err)
	}
	return Site{Program: self, Running: "/proc/self/exe", Data: data}, nil
}

func (s Site) fresh() string { return s.Program + ".upgrade" }

// Old is where the program lies that was replaced last.
func (s Site) Old() string { return s.Program + ".old" }

func (s Site) record() string { return filepath.Join(s.Data, "upgrade.json") }

func (s Site) passing(point string) {
	if s.Passing != nil {
		s.Passing(point)
	}
}

// Load reads the record, nil when the node was never upgraded.
func (s Site) Load() (*Record, error) {
	b, err := os.ReadFile(s.record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := &Record{}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of the last upgrade: %w", err)
	}
	return r, nil
}

func (s Site) save(r *Record) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = atomicfile.WriteSync(s.record(), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the record of the upgrade: %w", err)
	}
	return nil
}

// end notes how an upgrade ended.
func (s Site) end(r *Record, step Step, why error) error {
	r.Step = step
	if why != nil {
		r.Error = why.Error()
	}
	err := s.save(r)
	s.passing("noted")
	return err
}

// HasTold notes that somebody knows of the upgrade that was undone.
func (s Site) HasTold(r *Record) error {
	r.Told = true
	return s.save(r)
}

// isNew reports whether the program in place is the new one.
func (s Site) isNew(r *Record) (bool, error) {
	sum, _, err := program.Sum(s.Program)
	if err != nil {
		return false, err
	}
	return hex.EncodeToString(sum[:]) == r.SHA256, nil
}

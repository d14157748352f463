package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/attach"
	"skep.dev/libs/id"
)

// record is what the disk knows of a task's network. It is not synced: after a power failure the namespaces are gone
// too, and a record without one is dropped.
type record struct {
	Task        string        `json:"task"`
	Service     string        `json:"service,omitempty"`
	Address     netip.Addr    `json:"address,omitzero"` // on skep0; none for a task without a way out
	IPv6        bool          `json:"ipv6,omitempty"`   // there is one too, which follows from it
	Networks    []membership  `json:"networks,omitempty"`
	Ports       []attach.Port `json:"ports,omitempty"` // host mode, as bound
	Nameservers []string      `json:"nameservers,omitempty"`
	Attached    int64         `json:"attached,omitempty"` // unix ms; of two tasks with one host port the older one has it
}

// membership is a task's interface on an overlay network.
type membership struct {
	Network string       `json:"network"`
	Device  string       `json:"device"`
	Addr    netip.Prefix `json:"addr"`
	Addr6   netip.Prefix `json:"addr6,omitzero"`
	Fixed   bool         `json:"fixed,omitempty"` // the service names it: it comes up elsewhere as soon as this task has ended
}

func (r record) networks() []string {
	out := make([]string, 0, len(r.Networks))
	for _, m := range r.Networks {
		out = append(out, m.Network)
	}
	return out
}

// records are the files under <data>/mesh.
type records struct{ dir string }

func (r records) tasks() string           { return filepath.Join(r.dir, "tasks") }
func (r records) path(task string) string { return filepath.Join(r.tasks(), task+".json") }
func (r records) cursor() string          { return filepath.Join(r.dir, "last") }
func (r records) picture() string         { return filepath.Join(r.dir, "picture.pb") }

// nsPath is where a task's network namespace is kept.
func (s *Service) nsPath(task string) string { return filepath.Join(s.netns, task) }

// load returns a task's record; false when there is none that can be read.
func (r records) load(task string) (record, bool, error) {
	b, err := os.ReadFile(r.path(task))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, false, nil
	}
	if err != nil {
		return record{}, false, fmt.Errorf("read the network record of task %s: %w", task, err)
	}
	var rec record
	if json.Unmarshal(b, &rec) != nil || rec.Task != task || rec.Address.IsValid() && !rec.Address.Is4() {
		return record{}, false, nil // torn by a power failure
	}
	return rec, true, nil
}

func (r records) save(rec record) error {
	b, err := json.Marshal(rec)
	if err == nil {
		err = atomicfile.Write(r.path(rec.Task), b)
	}
	if err == nil && rec.Address.IsValid() {
		err = atomicfile.Write(r.cursor(), []byte(rec.Address.String()))
	}
	if err != nil {
		return fmt.Errorf("write the network record of task %s: %w", rec.Task, err)
	}
	return nil
}

func (r records) remove(task string) error {
	if err := os.Remove(r.path(task)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the network record of task %s: %w", task, err)
	}
	return nil
}

// list returns the tasks that have a record; what a crash left half-written is none.
func (r records) list() ([]string, error) {
	entries, err := os.ReadDir(r.tasks())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the network records: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if task, ok := strings.CutSuffix(e.Name(), ".json"); ok && id.Safe(task) {
			ids = append(ids, task)
		}
	}
	return ids, nil
}

func (r records) lastAddress() (netip.Addr, bool) {
	b, err := os.ReadFile(r.cursor())
	if err != nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(string(b))
	return a, err == nil
}

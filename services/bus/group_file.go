package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	"skep.dev/libs/atomicfile"
	skepv1 "skep.dev/proto/skep/v1"
)

// groupFile is in the data directory.
const groupFile = "group.json"

// Place is <data>/group.json: this manager's place in the group, by which it starts, also without a quorum. It is
// written before its server starts for the first time, and whenever the group changes.
type Place struct {
	// Server is the name of its server, whose store is in main/.
	Server string `json:"server"`
	// Witness is the name of the witness beside it, "" = none.
	Witness string `json:"witness,omitempty"`
	// Routes are the route addresses of the other managers.
	Routes    []string `json:"routes,omitempty"`
	Epoch     uint64   `json:"epoch"`
	ClusterID string   `json:"cluster_id"`
	// Set is the group as it was last known (protojson of skep.v1.ManagerSet), and Revision that of its key.
	Set      json.RawMessage `json:"set,omitempty"`
	Revision uint64          `json:"revision,omitempty"`
	// Gone: the server left the group, and its store is being removed. It must not start again.
	Gone bool `json:"gone,omitempty"`
}

// ReadPlace reads group.json in a bus's data directory, nil when there is none.
func ReadPlace(dataDir string) (*Place, error) {
	path := filepath.Join(dataDir, groupFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read this manager's place in the group: %w", err)
	}
	var p Place
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("read this manager's place in the group from %s: %w", path, err)
	}
	if p.Server == "" {
		return nil, fmt.Errorf("read this manager's place in the group from %s: it names no server", path)
	}
	return &p, nil
}

// Write replaces group.json.
func (p *Place) Write(dataDir string) error {
	text, err := json.MarshalIndent(p, "", "  ")
	if err == nil {
		err = os.MkdirAll(dataDir, 0o700)
	}
	if err == nil {
		err = atomicfile.WriteSync(filepath.Join(dataDir, groupFile), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write this manager's place in the group: %w", err)
	}
	return nil
}

// set is the group as it was last known, empty when nothing was.
func (p *Place) set() *skepv1.ManagerSet {
	set := &skepv1.ManagerSet{}
	if len(p.Set) > 0 {
		// What an older or newer version wrote and this one cannot read is learnt again from the store.
		_ = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(p.Set, set)
	}
	return set
}

// Group is the group of managers as it was last known, empty when nothing was; nil knows nothing.
func (p *Place) Group() *skepv1.ManagerSet {
	if p == nil {
		return &skepv1.ManagerSet{}
	}
	return p.set()
}

// follow takes over what a set says of this server; false when it changes nothing. A set that does not name the server is
// none of its business.
func (p *Place) follow(set *skepv1.ManagerSet, revision uint64) (changed bool) {
	me := memberOf(set, p.Server)
	if me == nil {
		return false
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(set)
	if err != nil {
		return false
	}
	was := *p
	p.Witness, p.Epoch, p.Routes, p.Set, p.Revision = me.GetWitness(), set.GetEpoch(), routesOf(set, p.Server), text, revision
	return was.Witness != p.Witness || was.Epoch != p.Epoch || was.Revision != p.Revision || !slices.Equal(was.Routes, p.Routes)
}

// memberOf is the entry of a server, nil when there is none.
func memberOf(set *skepv1.ManagerSet, server string) *skepv1.Manager {
	for _, m := range set.GetManagers() {
		if m.GetServer() == server {
			return m
		}
	}
	return nil
}

// routesOf are the route addresses of those whose stores are in the group, without one server's own.
func routesOf(set *skepv1.ManagerSet, except string) (out []string) {
	for _, m := range set.GetManagers() {
		if m.GetServer() != except && m.GetState() != skepv1.ManagerState_MANAGER_STATE_JOINING && m.GetRoute() != "" {
			out = append(out, m.GetRoute())
		}
	}
	return out
}

// wipe removes the store of this manager and its place in the group. A crash in the middle is finished by the next start:
// a store that was let go never starts again.
func wipe(dataDir string) error {
	p, _ := ReadPlace(dataDir) // unreadable: what it said is of no use any more
	if p == nil {
		p = &Place{Server: "-"}
	}
	p.Gone = true
	if err := p.Write(dataDir); err != nil {
		return err
	}
	for _, name := range []string{"main", "witness", refoundFile, groupFile} {
		if err := os.RemoveAll(filepath.Join(dataDir, name)); err != nil {
			return fmt.Errorf("remove the store of a manager that left the group: %w", err)
		}
	}
	if err := atomicfile.SyncDir(dataDir); err != nil {
		return fmt.Errorf("remove the store of a manager that left the group: %w", err)
	}
	return nil
}

// hasStore reports whether the server's store is there.
func hasStore(dataDir string) (bool, error) {
	list, err := os.ReadDir(filepath.Join(dataDir, "main"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the store: %w", err)
	}
	return len(list) > 0, nil
}

// hostOf is the host of host:port.
func hostOf(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return strings.Trim(addr, "[]")
}

package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/kv"
	skepv1 "skep.dev/proto/skep/v1"
)

// refoundFile is in the data directory as long as the cluster is being founded anew.
const refoundFile = "refound.json"

// Refounding is <data>/refound.json: the cluster is to be founded anew by this manager alone, because the majority of its
// managers is lost for good. Whoever asks for it writes it (AskRefound); every start goes on with it until it is done, and
// the file is gone.
type Refounding struct {
	Asked time.Time `json:"asked"`
	// Epoch is what the cluster has from now on. It is told to other managers from the first start on.
	Epoch uint64 `json:"epoch"`
	// Lost are the managers that were in the group, for people.
	Lost []LostManager `json:"lost,omitempty"`
	// Partial: this manager was still joining, so its copy may not have been whole.
	Partial bool `json:"partial,omitempty"`
	// Witness is the new witness's name, once it has one.
	Witness string `json:"witness,omitempty"`
	// Stage is what is being done, for people: one of the Stage constants.
	Stage string `json:"stage"`
	// Newest is when the newest record of this manager's copy was written: what the others acknowledged later is lost.
	Newest time.Time `json:"newest,omitzero"`
}

// LostManager is a manager that is lost for good.
type LostManager struct {
	NodeID   string `json:"node_id"`
	Hostname string `json:"hostname"`
	Addr     string `json:"addr"`
}

// The stages of founding a cluster anew.
const (
	StageAsked   = "starting the broker alone"
	StageLead    = "leading the group alone and removing the lost managers from it"
	StageStreams = "giving every stream one replica, here"
	StageWitness = "starting a witness beside this manager"
	StageRecord  = "writing down the new group"
	StageNodes   = "making workers of the lost managers"
)

// ErrNoCopy: this manager cannot found the cluster anew.
var ErrNoCopy = errors.New("this manager has no copy of the cluster's data")

// AskRefound has the next start of the bus in this data directory found the cluster anew. It refuses a directory without a
// whole copy of the data. Asked again, it is the same founding.
func AskRefound(dataDir string) (*Refounding, error) {
	have, err := ReadRefounding(dataDir)
	if err != nil || have != nil {
		return have, err
	}
	p, err := ReadPlace(dataDir)
	if err != nil {
		return nil, err
	}
	if p == nil {
		p = &Place{Epoch: 1}
	}
	if p.Gone {
		return nil, fmt.Errorf("%w: it left the group of managers", ErrNoCopy)
	}
	if err := copyIsWhole(dataDir); err != nil {
		return nil, err
	}
	r := &Refounding{Asked: time.Now().UTC(), Epoch: p.Epoch + 1, Stage: StageAsked}
	for _, m := range p.set().GetManagers() {
		if m.GetServer() == p.Server {
			r.Partial = m.GetState() == skepv1.ManagerState_MANAGER_STATE_JOINING
		} else {
			r.Lost = append(r.Lost, LostManager{NodeID: m.GetNodeId(), Hostname: m.GetHostname(), Addr: m.GetAddr()})
		}
	}
	return r, r.write(dataDir)
}

// ReadRefounding reads what AskRefound wrote, nil when the cluster is not being founded anew.
func ReadRefounding(dataDir string) (*Refounding, error) {
	path := filepath.Join(dataDir, refoundFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r Refounding
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && r.Epoch == 0 {
		err = errors.New("it names no epoch")
	}
	if err != nil {
		return nil, fmt.Errorf("read how far the cluster is founded anew from %s: %w; remove the file and ask for it again", path, err)
	}
	return &r, nil
}

func (r *Refounding) write(dataDir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = atomicfile.WriteSync(filepath.Join(dataDir, refoundFile), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write down that the cluster is founded anew: %w", err)
	}
	return nil
}

// done removes the file.
func (r *Refounding) done(dataDir string) error {
	err := os.Remove(filepath.Join(dataDir, refoundFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = atomicfile.SyncDir(dataDir)
	}
	if err != nil {
		return fmt.Errorf("write down that the cluster was founded anew: %w", err)
	}
	return nil
}

// copyIsWhole looks whether every stream that others cannot do without is in the store. Where there were two managers one
// of them has the only copy.
func copyIsWhole(dataDir string) error {
	var missing []string
	for _, s := range kv.Streams(1) {
		list, err := os.ReadDir(filepath.Join(dataDir, "main", "jetstream", accountName, "streams", s.Name, "msgs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for this manager's copy of stream %s: %w", s.Name, err)
		}
		if len(list) == 0 {
			missing = append(missing, s.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("%w: %s of %d streams are not in %s; found the cluster anew on a manager that has one, or restore a backup",
		ErrNoCopy, strings.Join(missing, ", "), len(kv.Streams(1)), dataDir)
}

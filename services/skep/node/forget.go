package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"skep.dev/libs/backup"
)

// forget removes what makes this machine a node. The data directory itself stays: it may be a mount point.
func forget(p Paths) error {
	entries, err := os.ReadDir(p.Data)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "node.json", "skep.pid", "lock":
			continue
		case "registries.toml": // the administrator's, for the next cluster too
			continue
		case backup.ShelfName: // a cluster that is lost with this machine is restored from there
			continue
		}
		if strings.HasPrefix(e.Name(), filepath.Base(p.Log())) { // and the older ones
			continue
		}
		if err := os.RemoveAll(p.Data + "/" + e.Name()); err != nil {
			return fmt.Errorf("forget the cluster: %w; something still uses it", err)
		}
	}
	if err := os.Remove(p.Record()); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	return nil
}

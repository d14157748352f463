package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"skep.dev/libs/atomicfile"
)

// roster is a file in the data directory with a list as it was last known, for a start without a quorum: a JSON array.
type roster struct {
	path  string
	what  string // "revoked certificates"
	valid func(string) bool
}

// read returns what is listed, nil when there is no file.
func (r roster) read() (map[string]bool, error) {
	text, err := os.ReadFile(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", r.what, err)
	}
	return r.parse(text)
}

func (r roster) parse(text []byte) (map[string]bool, error) {
	var list []string
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("read the %s: %w", r.what, err)
	}
	if list == nil {
		return nil, fmt.Errorf("read the %s: there is no list", r.what)
	}
	out := map[string]bool{}
	for _, x := range list {
		if !r.valid(x) {
			return nil, fmt.Errorf("read the %s: %q cannot be one", r.what, x)
		}
		out[x] = true
	}
	return out, nil
}

func (r roster) write(listed map[string]bool) error {
	text, err := json.Marshal(append([]string{}, slices.Sorted(maps.Keys(listed))...)) // none is [], not null
	if err == nil {
		err = os.MkdirAll(filepath.Dir(r.path), 0o700)
	}
	if err == nil {
		err = atomicfile.WriteSync(r.path, text)
	}
	if err != nil {
		return fmt.Errorf("write the %s: %w", r.what, err)
	}
	return nil
}

package diskspace

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
)

func TestOf(t *testing.T) {
	free, total, err := Of(t.TempDir())
	if err != nil || total == 0 || free > total {
		t.Errorf("%d of %d, %v", free, total, err)
	}
	if _, _, err := Of(filepath.Join(t.TempDir(), "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

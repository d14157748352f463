package atomicfile

import (
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// half is the name of a file that was being written.
var half = regexp.MustCompile(`\.new-[0-9]+$`)

// inWork is how old such a file must be before nobody writes it any more: writing takes milliseconds, and other processes of the
// node may do it meanwhile.
const inWork = time.Minute

// Sweep removes what writers that died half-way left in a directory and in those below it, deep levels down. What cannot be
// removed stays for the next time.
func Sweep(dir string, deep int) (removed int) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0 // there is nothing to sweep in what is not there
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			if deep > 0 {
				removed += Sweep(path, deep-1)
			}
		case e.Type().IsRegular() && half.MatchString(e.Name()):
			if i, err := e.Info(); err == nil && time.Since(i.ModTime()) > inWork && os.Remove(path) == nil {
				removed++
			}
		}
	}
	return removed
}

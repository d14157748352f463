package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// system are the folders of a host that are nobody's volume. What a plug-in names, a container may write.
var system = []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/root", "/sbin", "/sys", "/usr"}

// checkMountpoint takes a plug-in's word for where a volume is, unless that is a place of the system, of the keep folders,
// or one that they are in. The path is what a container is given: it has no links.
func checkMountpoint(path string, keep []string) (string, error) {
	switch {
	case path == "":
		return "", errors.New("it names no mount point")
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("its mount point %q is not an absolute path", cut(path))
	case strings.Contains("/"+path+"/", "/../"):
		return "", fmt.Errorf("its mount point %q leads out of where it says it is", cut(path))
	}
	if err := free(path, keep); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("its mount point: %w", err)
	}
	if err := free(real, keep); err != nil {
		return "", err
	}
	st, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("its mount point: %w", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("its mount point %s is not a folder", real)
	}
	return real, nil
}

func free(path string, keep []string) error {
	path = filepath.Clean(path)
	for _, list := range [][]string{system, keep} {
		for _, dir := range list {
			if below(path, dir) || below(dir, path) {
				return fmt.Errorf("its mount point %s is not given to containers: it holds, or is in, %s", cut(path), dir)
			}
		}
	}
	return nil
}

// below tells whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

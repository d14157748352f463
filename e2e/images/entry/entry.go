// Package entry is what the entrypoints of the lab's images share: settings from the environment or from the file that the
// environment names, and becoming the server. A secret's value never appears in an error.
package entry

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// maxValue is the largest setting that is read from a file, in bytes: a little more than a secret may hold.
const maxValue = 1 << 20

// Setting reads a setting by the first of its names that is given: NAME is the value, NAME_FILE names the file that holds it, without
// the newlines at its end. Both for one name are an error, as nobody could say which counts.
func Setting(names ...string) (value string, given bool, err error) {
	for _, name := range names {
		plain, file := os.Getenv(name), os.Getenv(name+"_FILE")
		switch {
		case plain != "" && file != "":
			return "", false, fmt.Errorf("both %[1]s and %[1]s_FILE are set: give one of them", name)
		case plain != "":
			value = plain
		case file != "":
			if value, err = readValue(file); err != nil {
				return "", false, fmt.Errorf("read the file that %s_FILE names: %w", name, err)
			}
		default:
			continue
		}
		if strings.ContainsRune(value, 0) {
			return "", false, fmt.Errorf("%s contains a zero byte: give text", name)
		}
		return value, true, nil
	}
	return "", false, nil
}

func readValue(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxValue {
		return "", fmt.Errorf("%s is not a regular file of at most %d bytes", file, maxValue)
	}
	b, err := os.ReadFile(file)
	return strings.TrimRight(string(b), "\r\n"), err
}

// Become replaces this process by a program, so that the program is what the container's signals reach.
func Become(env []string, argv ...string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	if err := unix.Exec(path, argv, env); err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	return nil
}

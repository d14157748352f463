// Package diskspace tells what is free where a folder lies.
package diskspace

import "syscall"

// Of is what a process without privileges may still write on the file system of dir, and how large that file system is, in bytes.
func Of(dir string) (free, total uint64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return st.Bavail * uint64(st.Bsize), st.Blocks * uint64(st.Bsize), nil
}

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

func ids() (uid, gid int, err error) {
	u, err := user.Lookup(account)
	if err != nil {
		return 0, 0, fmt.Errorf("find the user %s in the image: %w", account, err)
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, err
}

// own gives a folder and what is in it to the server's user; what belongs to the user already is left alone, so that a volume whose
// file system refuses every change of owner works when it is the right one.
func own(dir string) error {
	uid, gid, err := ids()
	if err != nil {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) == uid {
			return nil
		}
		return os.Lchown(path, uid, gid)
	})
	if err != nil {
		return fmt.Errorf("give %s to the user %s (%d:%d): %w; mount a volume that belongs to that user, or whose file system lets root change owners", dir, account, uid, gid, err)
	}
	return nil
}

// asAccount makes a command run as the server's user.
func asAccount(cmd *exec.Cmd) error {
	uid, gid, err := ids()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return nil
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-plugins-helpers/volume"
	"golang.org/x/sys/unix"
)

// driver mounts volumes on one host. Who has what mounted are empty files <ids>/<volume>/<id>, so that one that is started
// again knows; they are below /run, gone with the mounts when the host is off.
type driver struct {
	store
	host, scope, ids, mnt string

	mu sync.Mutex
}

func (d *driver) point(name string) string { return filepath.Join(d.mnt, name) }

func (d *driver) Capabilities() *volume.CapabilitiesResponse {
	return &volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: d.scope}}
}

func (d *driver) Create(r *volume.CreateRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.has(r.Name) {
		return fmt.Errorf("volume %s exists already", r.Name)
	}
	return d.create(r.Name)
}

func (d *driver) Remove(r *volume.RemoveRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.has(r.Name) {
		return fmt.Errorf("no such volume: %s", r.Name)
	}
	return d.remove(r.Name)
}

func (d *driver) Get(r *volume.GetRequest) (*volume.GetResponse, error) {
	if !d.has(r.Name) {
		return nil, fmt.Errorf("no such volume: %s", r.Name)
	}
	v := &volume.Volume{Name: r.Name, Status: map[string]any{"attached": d.holder(r.Name)}}
	if st, err := os.Stat(d.volume(r.Name)); err == nil {
		v.CreatedAt = st.ModTime().UTC().Format(time.RFC3339)
	}
	if mounted(d.point(r.Name)) {
		v.Mountpoint = d.point(r.Name)
	}
	return &volume.GetResponse{Volume: v}, nil
}

func (d *driver) List() (*volume.ListResponse, error) {
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	out := &volume.ListResponse{}
	for _, n := range names {
		out.Volumes = append(out.Volumes, &volume.Volume{Name: n})
	}
	return out, nil
}

func (d *driver) Path(r *volume.PathRequest) (*volume.PathResponse, error) {
	if !mounted(d.point(r.Name)) {
		return &volume.PathResponse{}, nil
	}
	return &volume.PathResponse{Mountpoint: d.point(r.Name)}, nil
}

func (d *driver) Mount(r *volume.MountRequest) (*volume.MountResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.has(r.Name) {
		return nil, fmt.Errorf("no such volume: %s", r.Name)
	}
	if err := d.attach(r.Name, d.host); err != nil {
		return nil, err
	}
	at := d.point(r.Name)
	if !mounted(at) {
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(d.data(r.Name), at, "", unix.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("mount volume %s: %w", r.Name, err)
		}
	}
	id := filepath.Join(d.ids, r.Name, r.ID)
	if err := os.MkdirAll(filepath.Dir(id), 0o755); err != nil {
		return nil, err
	}
	return &volume.MountResponse{Mountpoint: at}, os.WriteFile(id, nil, 0o644)
}

func (d *driver) Unmount(r *volume.UnmountRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := filepath.Join(d.ids, r.Name, r.ID)
	err := os.Remove(id)
	// Of the whole that no id is left of, such as after the host was off, what is left of it goes too.
	left, _ := os.ReadDir(filepath.Dir(id))
	if errors.Is(err, fs.ErrNotExist) && (len(left) > 0 || d.holder(r.Name) != d.host) {
		return fmt.Errorf("volume %s is not mounted for %s", r.Name, r.ID)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(left) > 0 {
		return nil
	}
	if mounted(d.point(r.Name)) {
		if err := unix.Unmount(d.point(r.Name), 0); err != nil {
			return fmt.Errorf("unmount volume %s: %w", r.Name, err)
		}
	}
	return d.detach(r.Name, d.host)
}

func mounted(at string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(b), " "+at+" ")
}

func chownLike(path string, st fs.FileInfo) error {
	owner := st.Sys().(*syscall.Stat_t)
	return errors.Join(os.Chown(path, int(owner.Uid), int(owner.Gid)), os.Chmod(path, st.Mode()))
}

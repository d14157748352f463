package wgnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"skep.dev/libs/atomicfile"
)

func keyPath(dir, id string) string  { return filepath.Join(dir, id+".key") }
func portPath(dir, id string) string { return filepath.Join(dir, id+".port") }

// loadKey reads the node's private key of a network, or makes it. A damaged one is not replaced: the others would
// refuse this node, and nobody would know why.
func loadKey(dir, id string) (wgtypes.Key, error) {
	b, err := os.ReadFile(keyPath(dir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(dir, id)
	}
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("read the node's key: %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("the node's key %s is damaged (%w): remove the file to have a new one made", keyPath(dir, id), err)
	}
	return key, nil
}

func makeKey(dir, id string) (wgtypes.Key, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return key, fmt.Errorf("make a key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return key, fmt.Errorf("make the directory of the keys: %w", err)
	}
	if err := atomicfile.WriteSync(keyPath(dir, id), []byte(key.String()+"\n")); err != nil {
		return key, fmt.Errorf("keep the node's key: %w", err)
	}
	return key, nil
}

// loadPort is the port the node had last time, 0 if that is not known.
func loadPort(dir, id string) uint16 {
	b, err := os.ReadFile(portPath(dir, id))
	if err != nil {
		return 0
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(v)
}

func savePort(dir, id string, port uint16) error {
	if loadPort(dir, id) == port {
		return nil
	}
	if err := atomicfile.WriteSync(portPath(dir, id), []byte(strconv.Itoa(int(port))+"\n")); err != nil {
		return fmt.Errorf("keep the node's port: %w", err)
	}
	return nil
}

func removeKey(dir, id string) error {
	var errs []error
	for _, path := range []string{keyPath(dir, id), portPath(dir, id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

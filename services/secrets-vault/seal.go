package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"skep.dev/libs/atomicfile"
)

const (
	masterFile = "master.key"
	sealV1     = 1
)

// sealer seals values under the master key: AES-256-GCM with a random nonce, bound to the name they are stored under, so
// that one ciphertext cannot be passed off as another.
type sealer struct{ aead cipher.AEAD }

func newSealer(master []byte) (*sealer, error) {
	block, err := aes.NewCipher(master)
	if err != nil {
		return nil, fmt.Errorf("use the master key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("use the master key: %w", err)
	}
	return &sealer{aead}, nil
}

func (s *sealer) seal(name string, v any) ([]byte, error) {
	clear, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return s.aead.Seal([]byte{sealV1}, nil, clear, []byte(name)), nil
}

func (s *sealer) open(name string, sealed []byte, v any) error {
	if len(sealed) == 0 || sealed[0] != sealV1 {
		return fmt.Errorf("open %s: it is not sealed in a form this version knows", name)
	}
	clear, err := s.aead.Open(nil, nil, sealed[1:], []byte(name))
	if err != nil {
		return fmt.Errorf("open %s: it was not sealed under this manager's master key, or it was altered", name)
	}
	if err := json.Unmarshal(clear, v); err != nil {
		return fmt.Errorf("open %s: its content is not what this version writes", name)
	}
	return nil
}

// newMaster makes the master key's file. It never replaces one: everything sealed under the old key would be lost.
func newMaster(dir string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the master key: %w", err)
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make the master key: %w", err)
	}
	err := atomicfile.Create(filepath.Join(dir, masterFile), []byte(hex.EncodeToString(key)+"\n"))
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the master key: %s exists: this machine holds a cluster's keys already; skep leave --force removes them",
			filepath.Join(dir, masterFile))
	}
	if err != nil {
		return nil, fmt.Errorf("make the master key: %w", err)
	}
	return key, nil
}

func readMaster(dir string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, masterFile))
	if err != nil {
		return nil, fmt.Errorf("read the master key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("read the master key: %s does not hold 32 bytes in hexadecimal", filepath.Join(dir, masterFile))
	}
	return key, nil
}

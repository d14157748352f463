package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"
)

const (
	masterSize = 32 // bytes
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

// sealBytes seals under a name, which is needed to open it again.
func (s *sealer) sealBytes(name string, clear []byte) []byte {
	return s.aead.Seal([]byte{sealV1}, nil, clear, []byte(name))
}

func (s *sealer) openBytes(name string, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != sealV1 {
		return nil, fmt.Errorf("open %s: it is not sealed in a form this version knows", name)
	}
	clear, err := s.aead.Open(nil, nil, sealed[1:], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("open %s: it was not sealed under this manager's master key, or it was altered", name)
	}
	return clear, nil
}

// sealMessage and openMessage are for messages.
func (s *sealer) sealMessage(name string, m proto.Message) ([]byte, error) {
	clear, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return s.sealBytes(name, clear), nil
}

func (s *sealer) openMessage(name string, sealed []byte, m proto.Message) error {
	clear, err := s.openBytes(name, sealed)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(clear, m); err != nil {
		return fmt.Errorf("open %s: its content is not what this version writes", name)
	}
	return nil
}

// seal and open are for what is stored as JSON.
func (s *sealer) seal(name string, v any) ([]byte, error) {
	clear, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return s.sealBytes(name, clear), nil
}

func (s *sealer) open(name string, sealed []byte, v any) error {
	clear, err := s.openBytes(name, sealed)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(clear, v); err != nil {
		return fmt.Errorf("open %s: its content is not what this version writes", name)
	}
	return nil
}

// newMaster makes a master key.
func newMaster() ([]byte, error) {
	key := make([]byte, masterSize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make the master key: %w", err)
	}
	return key, nil
}

// Package unlockkey is the key that opens a cluster whose managers lock themselves: what it looks like, and what is
// sealed under it.
//
// It is 256 random bits that people keep and no disk has in clear. Because it is random and not a password, one step of
// HKDF makes the sealing key of it; what is sealed is AES-256-GCM. It knows no files and no wire.
package unlockkey

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	prefix   = "SKEPKEY-1-"
	keySize  = 32
	sumSize  = 4
	textSize = (keySize + sumSize) / 3 * 4 // without padding: 36 bytes are 12 groups of 4 characters
	saltSize = 16
	form     = 1 // of what Seal makes
)

// Notice tells people what to do with a key (%s), in Docker's words.
const Notice = "To unlock a swarm manager after it restarts, run the `skep unlock`\ncommand and provide the following key:\n\n    %s\n\n" +
	"Please remember to store this key in a password manager, since without it you\nwill not be able to restart the manager.\n"

// Key is an unlock key. The zero value is none.
type Key struct{ bytes [keySize]byte }

// New makes one.
func New() (Key, error) {
	var k Key
	if _, err := rand.Read(k.bytes[:]); err != nil {
		return k, fmt.Errorf("make an unlock key: %w", err)
	}
	return k, nil
}

// Text is the key as people keep it: SKEPKEY-1-, then 48 characters of base64: the 32 bytes and 4 by which a mistake in
// copying is noticed.
func (k Key) Text() string {
	return prefix + base64.RawStdEncoding.EncodeToString(append(k.bytes[:], k.sum()...))
}

// String keeps the key out of logs.
func (k Key) String() string { return "unlock key " + k.ID() }

// GoString does too.
func (k Key) GoString() string { return k.String() }

func (k Key) sum() []byte {
	return digest("checksum", k.bytes[:])[:sumSize]
}

// ID names the key without telling anything of it, which 256 random bits allow.
func (k Key) ID() string { return fmt.Sprintf("%x", digest("id", k.bytes[:])[:6]) }

func digest(what string, b []byte) []byte {
	h := sha256.New()
	h.Write([]byte("skep unlock key: " + what + "\n"))
	h.Write(b)
	return h.Sum(nil)
}

// Parse reads a key as it was typed or pasted, and says what is wrong with it. No error repeats it: it may be the key
// but for one character.
func Parse(text string) (Key, error) {
	var k Key
	text = strings.TrimSpace(text)
	const again = "copy it again from where you keep it, or read it on a manager that is not locked: skep unlock-key -q"
	switch {
	case text == "":
		return k, fmt.Errorf("malformed unlock key: it is empty; %s", again)
	case strings.HasPrefix(text, "SWMKEY-"):
		return k, fmt.Errorf("malformed unlock key: it is a Docker Swarm key (SWMKEY-…), skep's begin with %s", prefix)
	case strings.HasPrefix(text, "SKEP-1-"):
		return k, errors.New("malformed unlock key: it is a join token (SKEP-1-…); the unlock key begins with " + prefix)
	case !strings.HasPrefix(text, "SKEPKEY-"):
		return k, fmt.Errorf("malformed unlock key: it does not begin with %s; %s", prefix, again)
	case !strings.HasPrefix(text, prefix):
		return k, errors.New("malformed unlock key: its version is not 1: this skep may be too old for the cluster")
	}
	body := text[len(prefix):]
	if len(body) != textSize {
		return k, fmt.Errorf("malformed unlock key: %d characters follow %s instead of %d; %s", len([]rune(body)), prefix, textSize, again)
	}
	raw, err := base64.RawStdEncoding.Strict().DecodeString(body)
	if err != nil || len(raw) != keySize+sumSize {
		return k, fmt.Errorf("malformed unlock key: it has characters other than letters, digits, + and /; %s", again)
	}
	defer clear(raw)
	copy(k.bytes[:], raw)
	if subtle.ConstantTimeCompare(raw[keySize:], k.sum()) != 1 {
		return Key{}, fmt.Errorf("malformed unlock key: its checksum does not fit, so it was copied with a mistake; %s", again)
	}
	return k, nil
}

// aead derives a cipher for one use of the key.
func (k Key) aead(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.bytes[:], salt, "skep: a master key under an unlock key, form 1", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Seal seals a secret under the key and binds it to what stands beside it in clear.
func (k Key) Seal(secret, beside []byte) ([]byte, error) {
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("seal under the unlock key: %w", err)
	}
	aead, err := k.aead(salt)
	if err != nil {
		return nil, err
	}
	return aead.Seal(append([]byte{form}, salt...), nil, secret, beside), nil
}

// ErrOpen: it was sealed under another key, or it or what stands beside it was altered.
var ErrOpen = errors.New("it was not sealed under this unlock key, or it was altered")

// Open opens what Seal made.
func (k Key) Open(sealed, beside []byte) ([]byte, error) {
	if len(sealed) <= 1+saltSize || sealed[0] != form {
		return nil, ErrOpen
	}
	aead, err := k.aead(sealed[1 : 1+saltSize])
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, sealed[1+saltSize:], beside)
	if err != nil {
		return nil, ErrOpen
	}
	return secret, nil
}

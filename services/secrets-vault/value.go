package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/seal"
)

// A value is sealed with a key of its own, which is sealed under the master key; both are bound to the place where they
// are stored. It is written once and never changed, before the record that names it: a crash between leaves a value that
// nobody refers to, which the sweep finds.

// newPlace is the key of a new value of an object.
func newPlace(object string) string { return keys.Value.Key(object, id.New()) }

// sealValue makes what is stored of a value at a place.
func (s *sealer) sealValue(place string, value []byte) ([]byte, error) {
	key := make([]byte, masterSize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("seal a value: %w", err)
	}
	defer seal.Wipe(key)
	own, err := newSealer(key)
	if err != nil {
		return nil, err
	}
	out, err := proto.Marshal(&skepv1.StoredValue{WrappedKey: s.sealBytes(place+" key", key), Sealed: own.sealBytes(place, value)})
	if err != nil {
		return nil, fmt.Errorf("seal a value: %w", err)
	}
	return out, nil
}

// openValue opens what is stored at a place.
func (s *sealer) openValue(place string, stored []byte) ([]byte, error) {
	var v skepv1.StoredValue
	if err := proto.Unmarshal(stored, &v); err != nil {
		return nil, fmt.Errorf("open %s: it is not what this version writes", place)
	}
	key, err := s.openBytes(place+" key", v.WrappedKey)
	if err != nil {
		return nil, err
	}
	defer seal.Wipe(key)
	own, err := newSealer(key)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", place, err)
	}
	return own.openBytes(place, v.Sealed)
}

// putValue stores a new value.
func (s *Service) putValue(ctx context.Context, place string, value []byte) error {
	stored, err := s.idx.seal.sealValue(place, value)
	if err != nil {
		return err
	}
	_, err = s.values.Create(ctx, place, stored)
	return err
}

// value reads one version of an object.
func (s *Service) value(ctx context.Context, o *object, version uint64) ([]byte, error) {
	place := o.Values[version]
	if place == "" {
		return nil, fmt.Errorf("%s %s has no version %d: versions %d to %d are kept", o.word(), o.name(), version, o.Secret.Versions[0].Number, o.current())
	}
	e, err := s.values.Read(ctx, place)
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return nil, fmt.Errorf("version %d of %s %s is not in the store any more", version, o.word(), o.name())
	case err != nil: // a broker that does not answer now
		return nil, fault.Unavailable("read version %d of %s %s: %v", version, o.word(), o.name(), err)
	}
	value, err := s.idx.seal.openValue(place, e.Value)
	if err != nil {
		return nil, fmt.Errorf("version %d of %s %s: %w", version, o.word(), o.name(), err)
	}
	return value, nil
}

// dropValue removes a value that no record names. The sweep does it later if this fails.
func (s *Service) dropValue(ctx context.Context, place string) {
	_ = s.values.Delete(context.WithoutCancel(ctx), place, 0)
}

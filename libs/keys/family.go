// Package keys is the list of everything the store holds: for each family of keys its bucket, its form, what is stored
// under it and who writes it. Nothing else in the tree spells a key out or takes one apart.
//
// The broker's rights of services (one writer per key), `skep decode` and the table in docs/contracts.md range over it.
package keys

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/subject"
)

// Writer is the one service that writes a family, by the name it has at the broker (services/bus/permissions.go).
type Writer string

// The writers.
const (
	State     Writer = "state"
	Scheduler Writer = "scheduler"
	Health    Writer = "health"
	Vault     Writer = "vault"
	Mesh      Writer = "mesh"
	Bus       Writer = "bus"
)

// Family is a kind of key: one word alone, or a beginning that the object's id follows.
type Family struct {
	Bucket subject.Bucket // "" for one that is in every bucket
	Writer Writer
	// Form is how the whole key looks, for people.
	Form string
	// Value is the message stored, nil for what is no message; Text then says what it is.
	Value protoreflect.MessageType
	Text  string

	begin string
	alone bool
}

// Alone reports whether the family is one key.
func (f *Family) Alone() bool { return f.alone }

// Prefix begins the family's keys: with a dot at its end, or the whole key of a family that is one, or nothing.
func (f *Family) Prefix() string { return f.begin }

// Key is a key of the family: its beginning, then the parts with dots between them.
func (f *Family) Key(parts ...string) string { return f.begin + strings.Join(parts, ".") }

// ID is what follows the beginning of a key, false when the key is of another family.
func (f *Family) ID(key string) (id string, ok bool) {
	if f.alone {
		return "", key == f.begin
	}
	id, ok = strings.CutPrefix(key, f.begin)
	return id, ok && id != ""
}

// Decode is the message stored, nil for a key that was deleted (nil) and for what is no message.
func (f *Family) Decode(val []byte) (proto.Message, error) {
	if val == nil || f.Value == nil {
		return nil, nil
	}
	m := f.Value.New().Interface()
	return m, proto.Unmarshal(val, m)
}

// families are all of them. Within a bucket the one whose keys begin with nothing comes last.
var (
	families []*Family
	inBucket = map[subject.Bucket][]*Family{}
)

// All are the families, in the order of the list.
func All() []*Family { return families }

// Of finds the family of a key of a bucket, and what follows its beginning; nil when there is none.
func Of(b subject.Bucket, key string) (f *Family, id string) {
	for _, list := range [...][]*Family{inBucket[""], inBucket[b]} {
		for _, f := range list {
			if id, ok := f.ID(key); ok {
				return f, id
			}
		}
	}
	return nil, ""
}

// add puts a family into the list. form is the whole key; what stands before its first "<" begins the keys.
func add(b subject.Bucket, form string, w Writer, value proto.Message, text string) *Family {
	begin, _, many := strings.Cut(form, "<")
	f := &Family{Bucket: b, Writer: w, Form: form, Text: text, begin: begin, alone: !many}
	if value != nil {
		f.Value = value.ProtoReflect().Type()
	}
	families, inBucket[b] = append(families, f), append(inBucket[b], f)
	return f
}

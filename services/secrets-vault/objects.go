package vault

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/spec"
)

// objects are the secrets, configs and registry credentials as the bucket has them, without values.
//
// Each record is sealed and bound to its key, so it can be neither read nor altered nor put in another's place. That it is
// not an older one of its own, put back by somebody who can write the store's files, the ledger says: it names the newest
// record of each object, and every change writes it in the same batch.
type objects struct {
	byID   map[string]*object
	byName map[nameKey]string // ids; lower case: two names that differ in case are one, as in Docker
	ledger map[string][]byte
	// ledgerRevision is that of the ledger's key, 0 = there is none yet.
	ledgerRevision uint64
	// newest is the highest revision of an object's key. Above ledgerRevision: the ledger of that change has not been read yet.
	newest uint64
	// alone is the newest revision whose ledger never came: whoever wrote it is not a vault.
	alone uint64
}

type nameKey struct {
	kind skepv1.SecretKind
	name string
}

// object is one of them. It is replaced, never changed.
type object struct {
	*skepv1.SecretRecord
	revision uint64
	sum      []byte // of the stored record, as the ledger has it
}

func (o *object) id() string   { return o.Secret.Meta.Id }
func (o *object) name() string { return o.Secret.Spec.Name }
func (o *object) word() string { return spec.KindWord(o.Secret.Kind) }

// current is the number of the newest version.
func (o *object) current() uint64 {
	return o.Secret.Versions[len(o.Secret.Versions)-1].Number
}

// version finds one, nil when it is not kept. It may be one that was dropped a moment ago.
func (o *object) version(n uint64) *skepv1.SecretVersion {
	for _, v := range o.Secret.Versions {
		if v.Number == n {
			return v
		}
	}
	return nil
}

// offered finds one that services may be given, nil when there is none.
func (o *object) offered(n uint64) *skepv1.SecretVersion {
	if v := o.version(n); v.GetDroppedAt() == nil {
		return v
	}
	return nil
}

// view is the object as clients see it.
func (o *object) view() *skepv1.Secret {
	out := proto.CloneOf(o.Secret)
	out.Meta.Version = o.revision
	out.Versions = slices.DeleteFunc(out.Versions, func(v *skepv1.SecretVersion) bool { return v.DroppedAt != nil })
	return out
}

func newObjects() objects {
	return objects{byID: map[string]*object{}, byName: map[nameKey]string{}, ledger: map[string][]byte{}}
}

// sumOf is what the ledger notes of a stored record.
func sumOf(stored []byte) []byte {
	sum := sha256.Sum256(stored)
	return sum[:16]
}

func nameOf(s *skepv1.Secret) nameKey { return nameKey{s.Kind, strings.ToLower(s.Spec.Name)} }

// takeObject takes in an entry of the family of objects.
func (x *objects) takeObject(seal *sealer, id string, e kv.Entry) error {
	x.newest = max(x.newest, e.Revision)
	if was := x.byID[id]; was != nil {
		if k := nameOf(was.Secret); x.byName[k] == id {
			delete(x.byName, k)
		}
		delete(x.byID, id)
	}
	if e.Deleted {
		return nil
	}
	r := &skepv1.SecretRecord{}
	if err := seal.openMessage(e.Key, e.Value, r); err != nil {
		return err
	}
	o := &object{r, e.Revision, sumOf(e.Value)}
	x.byID[id] = o
	if r.RemovedAt == nil && r.Secret.Kind != skepv1.SecretKind_SECRET_KIND_REGISTRY { // any number are of one registry
		x.byName[nameOf(r.Secret)] = id
	}
	return nil
}

// takeLedger takes in an entry of the ledger.
func (x *objects) takeLedger(seal *sealer, e kv.Entry) error {
	x.ledger, x.ledgerRevision = map[string][]byte{}, 0
	if e.Deleted {
		return nil
	}
	l := &skepv1.SecretLedger{}
	if err := seal.openMessage(e.Key, e.Value, l); err != nil {
		return err
	}
	x.ledger, x.ledgerRevision = l.Records, e.Revision
	return nil
}

// genuine reports whether an object's record is the newest there was of it. The objects are whole (Service.whole).
func (x *objects) genuine(o *object) bool { return bytes.Equal(x.ledger[o.id()], o.sum) }

// find finds an object by its id, its name or a beginning of its id that no other has; removed ones by their id alone.
func (x *objects) find(kind skepv1.SecretKind, ref string) (*object, error) {
	word := spec.KindWord(kind)
	if o := x.byID[ref]; o != nil && o.Secret.Kind == kind && o.RemovedAt == nil {
		return o, nil
	}
	if id, ok := x.byName[nameKey{kind, strings.ToLower(ref)}]; ok {
		return x.byID[id], nil
	}
	var found *object
	n := 0
	for id, o := range x.byID {
		if ref != "" && strings.HasPrefix(id, ref) && o.Secret.Kind == kind && o.RemovedAt == nil {
			found = o
			n++
		}
	}
	switch n {
	case 0:
		return nil, fault.NotFound("%s not found: %s", word, printable(ref))
	case 1:
		return found, nil
	}
	return nil, fault.Invalid("%s %s is ambiguous (%d matches found)", word, printable(ref), n)
}

// list are the objects of a kind that were not removed, by name.
func (x *objects) list(kind skepv1.SecretKind) []*object {
	var out []*object
	for _, o := range x.byID {
		if o.Secret.Kind == kind && o.RemovedAt == nil {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int {
		return cmp.Compare(strings.ToLower(a.name()), strings.ToLower(b.name()))
	})
	return out
}

// change is what a write of one object stores: its record and the ledger that knows it, each on the condition that nobody
// wrote it since it was read. next nil: the object goes.
func (x *objects) change(b *kv.Batch, seal *sealer, id string, next *skepv1.SecretRecord) error {
	was := x.byID[id]
	key := keys.Object.Key(id)
	ledger := maps.Clone(x.ledger)
	if ledger == nil {
		ledger = map[string][]byte{}
	}
	if next == nil {
		b.Delete(key, was.revision)
		delete(ledger, id)
	} else {
		stored, err := seal.sealMessage(key, next)
		if err != nil {
			return err
		}
		if len(stored) > maxRecord {
			return fault.Invalid("%s %s: its labels and versions take %d bytes, at most %d fit", spec.KindWord(next.Secret.Kind), next.Secret.Spec.Name, len(stored), maxRecord)
		}
		if was == nil {
			b.Create(key, stored)
		} else {
			b.Update(key, stored, was.revision)
		}
		ledger[id] = sumOf(stored)
	}
	stored, err := seal.sealMessage(keys.Ledger.Key(), &skepv1.SecretLedger{Records: ledger})
	if err != nil {
		return err
	}
	if x.ledgerRevision == 0 {
		b.Create(keys.Ledger.Key(), stored)
	} else {
		b.Update(keys.Ledger.Key(), stored, x.ledgerRevision)
	}
	return nil
}

const (
	// maxObjects bounds the ledger, which is one message.
	maxObjects = 10_000
	maxRecord  = 64 << 10
)

// errAltered: what the store has of an object is not what the vault wrote last. It is never served.
func errAltered(o *object) error {
	return fmt.Errorf("%s %s: its record is not the newest the vault wrote: the store was altered or put back to an older state. It is not served; remove it and create it again, or restore the store as a whole", o.word(), o.name())
}

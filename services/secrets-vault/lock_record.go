package vault

import (
	"cmp"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	"skep.dev/libs/unlockkey"
)

// lockRecord is the cluster's, opened; or, while locked, as far as it can be read.
type lockRecord struct {
	info     *skepv1.UnlockKeyInfo
	stored   *skepv1.AutolockRecord
	key      unlockkey.Key // if info says on, and the vault is not locked
	revision uint64
}

// lockPicture is what the bucket says of autolock.
type lockPicture struct {
	mu       sync.Mutex
	record   *lockRecord
	managers map[string]*skepv1.ManagerLock
	changed  chan struct{}
}

func (p *lockPicture) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.record, p.managers = nil, map[string]*skepv1.ManagerLock{}
}

func (p *lockPicture) now() *lockRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.record
}

func (r *lockRecord) Info() *skepv1.UnlockKeyInfo {
	if r == nil {
		return nil
	}
	return r.info
}

// take takes in an entry of the bucket. Without a sealer, while locked, nobody vouches for the record: it is only good for
// texts, and for what proves itself by opening.
func (p *lockPicture) take(s *sealer, e kv.Entry) error {
	f, node := keys.Of(subject.Secret, e.Key)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch f {
	case keys.Unlock:
		if e.Deleted {
			return nil
		}
		r := &lockRecord{info: &skepv1.UnlockKeyInfo{}, stored: &skepv1.AutolockRecord{}, revision: e.Revision}
		if err := proto.Unmarshal(e.Value, r.stored); err != nil {
			return err
		}
		if err := proto.Unmarshal(r.stored.Info, r.info); err != nil {
			return err
		}
		if s != nil {
			text, err := s.openBytes(recordName(r.stored.Info), r.stored.SealedKey)
			if err != nil {
				return err
			}
			if r.info.On {
				if r.key, err = unlockkey.Parse(string(text)); err != nil {
					return err
				}
			}
		}
		p.record = r
	case keys.ManagerLock:
		if e.Deleted {
			delete(p.managers, node)
			break
		}
		m := &skepv1.ManagerLock{}
		if err := proto.Unmarshal(e.Value, m); err != nil {
			return err
		}
		p.managers[node] = m
	}
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return nil
}

// recordName binds the record's sealed key to what the record says in clear.
func recordName(info []byte) string { return keys.Unlock.Key() + "\n" + string(info) }

func besideRecord(info []byte) []byte { return append([]byte(keys.Unlock.Key()+" master\n"), info...) }

// newRecord is what is stored; k is the zero key when autolock is turned off.
func newRecord(s *sealer, master []byte, info *skepv1.UnlockKeyInfo, k unlockkey.Key) ([]byte, error) {
	text, err := proto.Marshal(info)
	if err != nil {
		return nil, err
	}
	r := &skepv1.AutolockRecord{Info: text}
	var key []byte
	if info.On {
		key = []byte(k.Text())
		defer clear(key)
		if r.SealedMaster, err = k.Seal(master, besideRecord(text)); err != nil {
			return nil, err
		}
	}
	r.SealedKey = s.sealBytes(recordName(text), key)
	return proto.Marshal(r)
}

// others are the managers that wrote something down, but for one.
func (p *lockPicture) others(own string) (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for node := range p.managers {
		if node != own {
			out = append(out, node)
		}
	}
	return out
}

// state is what anybody may know; own is what this vault knows of itself.
func (p *lockPicture) state(own *skepv1.ManagerLock) *skepv1.AutolockState {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &skepv1.AutolockState{On: p.record.Info().GetOn(), Managers: []*skepv1.ManagerLock{own}}
	if out.On {
		out.Key = p.record.info
	}
	for node, m := range p.managers {
		if node != own.NodeId {
			out.Managers = append(out.Managers, m)
		}
	}
	slices.SortFunc(out.Managers, func(a, b *skepv1.ManagerLock) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.NodeId, b.NodeId))
	})
	return proto.CloneOf(out)
}

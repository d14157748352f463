package backup

import (
	"slices"

	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
)

// Buckets are those that a backup holds, in its order: all but who leads what at the moment.
func Buckets() []subject.Bucket {
	return slices.DeleteFunc(slices.Clone(subject.Buckets), func(b subject.Bucket) bool { return !Kept(b) })
}

// Kept reports whether a bucket is in backups.
func Kept(b subject.Bucket) bool { return b != subject.Lease && slices.Contains(subject.Buckets, b) }

// KeptKey reports whether a key of a bucket is: checkpoints speak of a stream's messages, and the group of managers is
// founded anew.
func KeptKey(b subject.Bucket, key string) bool {
	return key != "" && key != kv.CheckpointKey && !(b == subject.NodeB && key == keys.Managers.Key())
}

// Content is what a store holds, without the values of secrets, which are looked at one by one.
type Content map[subject.Bucket][]kv.Entry

// kinds are the families that are counted, for people.
var kinds = []struct {
	name   string
	family *keys.Family
}{
	{"services", keys.Service}, {"stacks", keys.Stack}, {"networks", keys.Network}, {"nodes", keys.Node}, {"revisions", keys.Revision},
	{"users", keys.User}, {"objects", keys.Object}, {"claims", keys.Claim},
}

// Counts are how many of each kind there are, and how many values.
func (c Content) Counts(values int) map[string]uint64 {
	out := map[string]uint64{"values": uint64(values)}
	for _, k := range kinds {
		n := uint64(0)
		for _, e := range c[k.family.Bucket] {
			if f, _ := keys.Of(k.family.Bucket, e.Key); f == k.family {
				n++
			}
		}
		out[k.name] = n
	}
	return out
}

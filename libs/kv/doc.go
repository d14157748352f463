// Package kv is skep's use of JetStream key-value buckets: streams made explicitly, compare-and-set writes,
// atomic batches, and feeds that keep an in-memory index in step with a bucket.
//
// It differs from nats.go's KeyValue where that would hurt: nothing here ever calls CreateOrUpdateKeyValue (it
// switches atomic publish off), a Create over a deleted key works inside a batch too, and decisions are never
// made from Direct Get (any replica answers it).
//
// What the store promises, whatever dies when, with one replica or several:
//   - An acknowledged write is there, and so is an acknowledged deletion: a key that was deleted does not come back. The
//     server alone does not promise that; CheckpointKey says what makes it so, and the Compactor keeps buckets small.
//   - A bucket's last sequence, and with it every revision, only grows.
//   - Markers of deletions are seen by feeds for RetireAfter; a feed that was away for longer begins again with a Reset.
//
// What it does not promise: a key that ends by its time to live (the lease bucket's) may be there again for an instant after
// an unclean end, until the server has looked at its age; holders are told apart by fences, not by what is there. Events end
// by age and by the stream's size, and the server applies both again after a recovery; nothing is decided from them.
//
// Failure story: a write whose acknowledgement is lost returns an error that is neither success nor ErrConflict;
// the caller waits for its feed and decides again. A feed whose watcher dies is made anew and begins with a Reset.
package kv

// Package kv is skep's use of JetStream key-value buckets: streams made explicitly, compare-and-set writes,
// atomic batches, and feeds that keep an in-memory index in step with a bucket.
//
// It differs from nats.go's KeyValue where that would hurt: nothing here ever calls CreateOrUpdateKeyValue (it
// switches atomic publish off), a Create over a deleted key works inside a batch too, tombstones carry a TTL so
// that churn does not grow a bucket for ever, and decisions are never made from Direct Get (any replica answers it).
//
// Failure story: a write whose acknowledgement is lost returns an error that is neither success nor ErrConflict;
// the caller waits for its feed and decides again. A feed whose watcher dies is made anew and begins with a Reset.
package kv

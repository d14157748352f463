package kv_test

import (
	"bytes"
	"errors"
	"testing"

	"skep.dev/libs/kv"
	"skep.dev/libs/kvtest"
	"skep.dev/libs/subject"
)

func TestRead(t *testing.T) {
	for name, n := range map[string]func(testing.TB) *kvtest.NATS{"R1": kvtest.Server, "R3": func(t testing.TB) *kvtest.NATS { return kvtest.Cluster(t, 3) }} {
		t.Run(name, func(t *testing.T) {
			// Every replica is asked, by a client of each: what one lacks for a moment, the leader has.
			servers := n(t)
			b := kv.Open(servers.JS(t), subject.Value)
			c := ctx(t)
			large := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n'}, 200<<10) // a value of 1000 KiB, as large as a message may be
			for key, value := range map[string][]byte{"large.a": large, "empty.a": {}, "text.a": []byte("v")} {
				if _, err := b.Create(c, key, value); err != nil {
					t.Fatal(err)
				}
				for range 5 {
					e, err := kv.Open(servers.JS(t), subject.Value).Read(c, key)
					if err != nil || e.Key != key || !bytes.Equal(e.Value, value) {
						t.Errorf("%s: %d bytes of %d, %v", key, len(e.Value), len(value), err)
					}
				}
			}
			if _, err := b.Read(c, "none.a"); !errors.Is(err, kv.ErrNotFound) {
				t.Errorf("a key that is not: %v", err)
			}
			if err := b.Delete(c, "text.a", 0); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if e, err := b.Read(c, "text.a"); err == nil && len(e.Value) == 0 {
					t.Error("a deleted key reads as an empty value")
				}
			}
			if _, err := b.Get(c, "text.a"); !errors.Is(err, kv.ErrNotFound) {
				t.Errorf("deleted: %v", err)
			}
		})
	}
}

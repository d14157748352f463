package index

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// Referring are the services whose spec or one of whose kept revisions has a text somewhere, such as the id of a secret,
// by id. Whether it stands where it means something is the caller's to see: most of what does not have it is not decoded.
func (x *Index) Referring(text string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	t := []byte(text)
	found := map[string]bool{}
	for id, s := range x.services {
		if bytes.Contains(s.raw, t) {
			found[id] = true
		}
	}
	for id, list := range x.revs {
		if x.services[id] != nil && !found[id] && slices.ContainsFunc(list, func(r revision) bool { return bytes.Contains(r.raw, t) }) {
			found[id] = true
		}
	}
	out := make([]string, 0, len(found))
	for id := range found {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// RevisionsReferring are the kept revisions of a service that have a text somewhere, oldest first.
func (x *Index) RevisionsReferring(service, text string) (out []*skepv1.Revision) {
	x.mu.RLock()
	var raw [][]byte
	for _, r := range x.revs[service] {
		if bytes.Contains(r.raw, []byte(text)) {
			raw = append(raw, r.raw)
		}
	}
	x.mu.RUnlock()
	for _, b := range raw {
		r := &skepv1.Revision{}
		if proto.Unmarshal(b, r) == nil {
			out = append(out, r)
		}
	}
	return out
}

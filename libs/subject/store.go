package subject

import "strings"

// Store is where a person asks the API of the store (JetStream) what only reads: skep.v1.js.<identity>.<operation>. It stands in
// place of $JS.API, which nobody outside the managers has: natscli takes it as jetstream_api_prefix.
func Store(identity string) string { return prefix + "js." + identity }

// AllStore is every Store.
const AllStore = prefix + "js.*.>"

// StoreAsked takes a subject below a Store apart: who asks, and for which operation, such as STREAM.INFO.EVENTS.
func StoreAsked(subj string) (identity, operation string, ok bool) {
	rest, ok := strings.CutPrefix(subj, prefix+"js.")
	if !ok {
		return "", "", false
	}
	identity, operation, ok = strings.Cut(rest, ".")
	return identity, operation, ok && IsPerson(identity) && operation != ""
}

// Readable are the streams that may be read there: all but those of the vault.
func Readable() []string {
	out := []string{EventStream, NodeEventStream}
	for _, b := range Buckets {
		if b != Secret && b != Value {
			out = append(out, b.Stream())
		}
	}
	return out
}

// Package rpc is request and reply between skep's services: protobuf on the wire, protojson for those who ask
// for it (so `nats req skep.v1.api.service.inspect '{"ref":"web"}'` works by hand), faults in the micro error
// headers, one goroutine a request under a bound.
//
// It refuses nothing by itself: who may call what is the broker's to enforce, by subject.
package rpc

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Header names and content types that travel with requests, replies and events.
const (
	HeaderContentType = "Content-Type"
	HeaderAccept      = "Accept"
	HeaderType        = "Skep-Type"
	HeaderTrace       = "Skep-Trace"
	// HeaderStale, on a reply, says that the managers have no leader: it is as of then (unix ms).
	HeaderStale = "Skep-Stale"
	// HeaderRequest is the id of a request that changes something, HeaderAgain says that it was asked before.
	HeaderRequest = "Skep-Request"
	HeaderAgain   = "Skep-Again"

	TypeJSON  = "application/json"
	TypeProto = "application/x-protobuf"
)

var (
	jsonOut = protojson.MarshalOptions{UseProtoNames: true}
	jsonIn  = protojson.UnmarshalOptions{DiscardUnknown: false}
)

// looksJSON tells a protojson body from protobuf when no header says: no message of skep's starts with
// field 15, wire type 3 ('{'), which protobuf has given up anyway. White space before it is not looked
// through: those bytes are tags of protobuf fields.
func looksJSON(body []byte) bool { return len(body) > 0 && body[0] == '{' }

// Decode fills m from a body in either encoding and reports whether it was JSON.
func Decode(body []byte, contentType string, m proto.Message) (json bool, err error) {
	if contentType == TypeJSON || contentType == "" && looksJSON(body) {
		if len(bytes.TrimSpace(body)) == 0 {
			return true, nil
		}
		return true, jsonIn.Unmarshal(body, m)
	}
	return false, proto.Unmarshal(body, m)
}

// Encode renders m as protobuf, or as one line of protojson.
func Encode(m proto.Message, json bool) ([]byte, error) {
	if json {
		return jsonOut.Marshal(m)
	}
	return proto.Marshal(m)
}

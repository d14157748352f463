package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
)

// serviceBody is a service's spec on the wire: with what the types of today's API do not have any more.
type serviceBody struct {
	swarm.ServiceSpec
	// Networks of the service, before tasks had theirs.
	Networks []swarm.NetworkAttachmentConfig `json:",omitempty"`
}

// DecodeService reads a service's spec from a request's body. As in Docker, a field that no version has is no mistake; the
// warning says so, as it may be a slip of the pen.
func DecodeService(body []byte) (swarm.ServiceSpec, []string, error) {
	var in serviceBody
	if err := decode(body, &in); err != nil {
		return swarm.ServiceSpec{}, nil, err
	}
	warn := unknownField(body)
	switch {
	case len(in.Networks) == 0:
	case len(in.TaskTemplate.Networks) == 0:
		in.TaskTemplate.Networks = in.Networks
	case !slices.EqualFunc(in.Networks, in.TaskTemplate.Networks, sameNetwork):
		return swarm.ServiceSpec{}, nil, fault.Invalid("Networks and TaskTemplate.Networks differ: use TaskTemplate.Networks alone")
	}
	return in.ServiceSpec, warn, nil
}

func sameNetwork(a, b swarm.NetworkAttachmentConfig) bool {
	return a.Target == b.Target && slices.Equal(a.Aliases, b.Aliases)
}

// decode reads one JSON value and nothing after it.
func decode(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return fault.Invalid("got EOF while reading request body")
		}
		return fault.Invalid("invalid JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.Invalid("unexpected content after JSON")
	}
	return nil
}

// unknownField names the first one that no type has.
func unknownField(body []byte) []string {
	strict := json.NewDecoder(bytes.NewReader(body))
	strict.DisallowUnknownFields()
	var again serviceBody
	if err := strict.Decode(&again); err != nil {
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return []string{fmt.Sprintf("the field %.80s is not known and has no effect", field)}
		}
	}
	return nil
}

package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// words are an enumeration in Docker's words. Of several words of one value the longest is told.
type words[E comparable] map[string]E

func (w words[E]) of(v E) string {
	best := ""
	for _, word := range slices.Sorted(maps.Keys(w)) {
		if w[word] == v && len(word) > len(best) {
			best = word
		}
	}
	return best
}

// annotations always have labels: readers range over them, and Docker's answers never hold null.
func annotations(name string, labels map[string]string) swarm.Annotations {
	return swarm.Annotations{Name: name, Labels: filled(labels)}
}

func filled(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func metaToDocker(m *skepv1.Meta) swarm.Meta {
	out := swarm.Meta{Version: swarm.Version{Index: m.GetVersion()}, CreatedAt: timeOf(m.GetCreatedAt()), UpdatedAt: timeOf(m.GetUpdatedAt())}
	if out.UpdatedAt.IsZero() {
		out.UpdatedAt = out.CreatedAt
	}
	return out
}

// timeOf is the zero time for none, which is not the beginning of 1970.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func timePointer(t *timestamppb.Timestamp) *time.Time {
	if t == nil || t.AsTime().Unix() == 0 {
		return nil
	}
	v := t.AsTime()
	return &v
}

func millis(ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func durationFromDocker(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func durationToDocker(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := d.AsDuration()
	return &v
}

// set is a duration that is none when it is 0.
func set(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// checkText refuses what no field of a spec can hold: bytes that are no UTF-8, and NUL, which ends a string for the kernel.
// Values are never shown, as they may be secret.
func checkText(m protoreflect.Message, path string) error {
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := strings.TrimPrefix(path+"."+f.JSONName(), ".")
		check := func(f protoreflect.FieldDescriptor, v protoreflect.Value, at string) error {
			switch {
			case f.Message() != nil:
				return checkText(v.Message(), at)
			case f.Kind() != protoreflect.StringKind:
			case !utf8.ValidString(v.String()):
				return fault.Invalid("%s is not UTF-8", at)
			case strings.ContainsRune(v.String(), 0):
				return fault.Invalid("%s holds a NUL", at)
			}
			return nil
		}
		switch {
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = check(f, v.List().Get(i), fmt.Sprintf("%s[%d]", at, i))
			}
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if err = check(f.MapKey(), k.Value(), at); err == nil {
					err = check(f.MapValue(), v, at)
				}
				return err == nil
			})
		default:
			err = check(f, v, at)
		}
		return err == nil
	})
	return err
}

package spec

import (
	"strings"
	"unicode"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Word is an enumeration's value as users write it: TASK_STATE_RUNNING is "running". A number that the enumeration does
// not have stays a number.
func Word[E interface {
	protoreflect.Enum
	String() string
}](e E) string {
	var prefix strings.Builder
	for i, r := range string(e.Descriptor().Name()) {
		if i > 0 && unicode.IsUpper(r) {
			prefix.WriteByte('_')
		}
		prefix.WriteRune(unicode.ToUpper(r))
	}
	return strings.ToLower(strings.TrimPrefix(e.String(), prefix.String()+"_"))
}

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
	return wordOf(e.Descriptor(), e.String())
}

// wordOf is Word for a value by its name.
func wordOf(enum protoreflect.EnumDescriptor, name string) string {
	var prefix strings.Builder
	camel := []rune(string(enum.Name()))
	for i, r := range camel {
		// A word begins with a capital; of several in a row, as in CAPhase, the last one does.
		if i > 0 && unicode.IsUpper(r) && (!unicode.IsUpper(camel[i-1]) || i+1 < len(camel) && unicode.IsLower(camel[i+1])) {
			prefix.WriteByte('_')
		}
		prefix.WriteRune(unicode.ToUpper(r))
	}
	return strings.ToLower(strings.TrimPrefix(name, prefix.String()+"_"))
}

package vault

import (
	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/fault"
	"skep.dev/libs/filetemplate"
	"skep.dev/libs/spec"
)

// checkTemplate refuses a value that the nodes could not fill in.
func checkTemplate(kind skepv1.SecretKind, s *skepv1.SecretSpec, value []byte) error {
	if s.GetTemplateDriver() == "" {
		return nil
	}
	if err := filetemplate.Check(value); err != nil {
		return fault.Invalid("%s %s: %v", spec.KindWord(kind), s.GetName(), err)
	}
	return nil
}

package translate

import (
	"errors"

	"skep.dev/libs/fault"
)

// Unsupported is a refusal of what Docker's API has and skep has not: 501 for its clients. To everybody else it is a fault
// with code invalid.
type Unsupported struct{ fault *fault.Error }

func (e *Unsupported) Error() string { return e.fault.Error() }

// Unwrap is the fault.
func (e *Unsupported) Unwrap() error { return e.fault }

// IsUnsupported tells refusals of what skep has not from other errors.
func IsUnsupported(err error) bool {
	var e *Unsupported
	return errors.As(err, &e)
}

// unsupported refuses a wish.
func unsupported(format string, a ...any) error {
	f := fault.Invalid(format, a...)
	return &Unsupported{f}
}

// notKept refuses a field by its path, and says what to do instead.
func notKept(field, instead string) error {
	return unsupported("%s is not supported: %s", field, instead)
}

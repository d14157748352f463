// Package fault is skep's wire error: a small set of codes and a sentence for a person. It travels in the micro service error headers.
package fault

import (
	"errors"
	"fmt"
)

// Code classifies an error. The set is closed; the CLI maps it to exit statuses.
type Code string

// The codes.
const (
	CodeNotFound    Code = "not_found"
	CodeConflict    Code = "conflict"    // somebody else changed it, or it exists already
	CodeSequence    Code = "sequence"    // it was changed since the version that was named: read it again, then repeat
	CodeInvalid     Code = "invalid"     // the request can never succeed as it is
	CodeUsage       Code = "usage"       // how it was written is wrong: an option or a value there is not
	CodeUnavailable Code = "unavailable" // nobody answers, or not now: retryable
	CodeDenied      Code = "denied"
	CodeExhausted   Code = "exhausted" // a pool, quota or limit is used up
	CodeLocked      Code = "locked"    // the cluster's secrets are sealed until somebody unlocks a manager
	CodeInternal    Code = "internal"
)

// Error is what every API reply carries when it failed.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message }

// New makes an error of the given code.
func New(c Code, format string, a ...any) *Error {
	return &Error{Code: c, Message: fmt.Sprintf(format, a...)}
}

// NotFound and its siblings make an error of the code they name.
func NotFound(format string, a ...any) *Error { return New(CodeNotFound, format, a...) }

// Conflict: the object exists already or was changed meanwhile.
func Conflict(format string, a ...any) *Error { return New(CodeConflict, format, a...) }

// Invalid: the request can never succeed as it is.
func Invalid(format string, a ...any) *Error { return New(CodeInvalid, format, a...) }

// Usage: how it was written is wrong, whatever the state of the cluster.
func Usage(format string, a ...any) *Error { return New(CodeUsage, format, a...) }

// AsUsage is err as one of how it was written, if it says that the request can never succeed: for who checks what somebody wrote by the
// rules that hold for objects.
func AsUsage(err error) error {
	if !Is(err, CodeInvalid) {
		return err
	}
	return &Error{Code: CodeUsage, Message: err.Error()}
}

// Unavailable: not now; the same request may succeed later.
func Unavailable(format string, a ...any) *Error { return New(CodeUnavailable, format, a...) }

// Denied: the caller may not do this.
func Denied(format string, a ...any) *Error { return New(CodeDenied, format, a...) }

// Exhausted: a pool, quota or limit is used up.
func Exhausted(format string, a ...any) *Error { return New(CodeExhausted, format, a...) }

// Locked: not before somebody has unlocked a manager.
func Locked(format string, a ...any) *Error { return New(CodeLocked, format, a...) }

// Of returns the code of err: CodeInternal when it carries none, "" for nil.
func Of(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// Is reports whether err carries code c.
func Is(err error, c Code) bool { return Of(err) == c }

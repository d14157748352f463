package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/common"

	"skep.dev/libs/fault"
)

// Error is a refusal with its status. Its text is what `docker` prints after "Error response from daemon: ".
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an error with a status.
func Errorf(status int, format string, a ...any) *Error {
	return &Error{status, fmt.Sprintf(format, a...)}
}

// Invalid is for a request that can never succeed as it is: 400.
func Invalid(format string, a ...any) *Error { return Errorf(http.StatusBadRequest, format, a...) }

// NotFound is for an object there is not: 404.
func NotFound(format string, a ...any) *Error { return Errorf(http.StatusNotFound, format, a...) }

// Unserved is for what skep does not do through this API: 501. The text says what to use instead.
func Unserved(format string, a ...any) *Error {
	return Errorf(http.StatusNotImplemented, format, a...)
}

// Unavailable is for what cannot be done now, or not on this node: 503, as Docker's nodes that are no managers answer.
func Unavailable(format string, a ...any) *Error {
	return Errorf(http.StatusServiceUnavailable, format, a...)
}

var errNoPage = NotFound("page not found")

// statuses are those of skep's faults. A version that is out of sequence is 500 in Docker, and clients look at its text.
var statuses = map[fault.Code]int{
	fault.CodeNotFound:    http.StatusNotFound,
	fault.CodeConflict:    http.StatusConflict,
	fault.CodeSequence:    http.StatusInternalServerError,
	fault.CodeInvalid:     http.StatusBadRequest,
	fault.CodeUsage:       http.StatusBadRequest,
	fault.CodeUnavailable: http.StatusServiceUnavailable,
	fault.CodeDenied:      http.StatusForbidden,
	fault.CodeExhausted:   http.StatusBadRequest,
	fault.CodeLocked:      http.StatusServiceUnavailable,
	fault.CodeInternal:    http.StatusInternalServerError,
}

// errorOf is any error with its status.
func errorOf(err error) *Error {
	var e *Error
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &large):
		return Errorf(http.StatusRequestEntityTooLarge, "request body too large: at most %d bytes are taken here", large.Limit)
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable("the cluster did not answer in time")
	}
	return &Error{statuses[fault.Of(err)], err.Error()}
}

// writeError answers with an error, in the form whose Content-Type the clients check.
func writeError(w http.ResponseWriter, err error) {
	e := errorOf(err)
	b, merr := json.Marshal(common.ErrorResponse{Message: e.Message})
	if merr != nil { // a text always has a form
		b = []byte(`{"message":"internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Length")
	w.WriteHeader(e.Status)
	_, _ = w.Write(append(b, '\n')) // the client is gone if this fails; there is nobody left to tell
}

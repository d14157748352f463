package engine

import (
	"net/http"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// named is err of an object that somebody named: not found, and ambiguous, are said in Docker's words.
func named(err error, kind, ref string) error {
	switch {
	case fault.Is(err, fault.CodeNotFound):
		return wire.NotFound("%s %s not found", kind, ref)
	case fault.Is(err, fault.CodeSequence):
		return outOfSequence()
	}
	return err
}

// outOfSequence is what a change of an old version gets. Clients look for the words.
func outOfSequence() error {
	return wire.Errorf(http.StatusInternalServerError, "rpc error: code = Unknown desc = update out of sequence")
}

// clash is err of something that is made: a name that is taken is said in Docker's words.
func clash(err error) error {
	if fault.Is(err, fault.CodeConflict) && strings.HasSuffix(err.Error(), "already exists") {
		return wire.Errorf(http.StatusConflict, "rpc error: code = AlreadyExists desc = %v", err)
	}
	return err
}

// unkept is err of a translation: what skep has not is 501, in Docker's form.
func unkept(err error) error {
	if translate.IsUnsupported(err) {
		return wire.Unserved("rpc error: code = Unimplemented desc = %v", err)
	}
	return err
}

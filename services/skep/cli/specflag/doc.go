// Package specflag maps the flags of `service create` and `service update` to a ServiceSpec: the only place
// where a flag's name, its syntax and the field it fills meet.
//
// It refuses what is malformed at once, naming the flag, so that nothing half right is ever sent; what only the
// cluster can know (is the name taken, does the network exist) it leaves to the state service. Nothing here
// does I/O except reading the files that --env-file names.
package specflag

import (
	"errors"
	"fmt"
)

// ErrInvalid marks an error the user repairs by writing the command differently.
var ErrInvalid = errors.New("invalid value")

// invalid is an error about one flag: it reads as its text alone and still is ErrInvalid.
type invalid struct{ text string }

func (e *invalid) Error() string { return e.text }

// Is makes errors.Is(err, ErrInvalid) hold.
func (e *invalid) Is(target error) bool { return target == ErrInvalid }

func invalidf(format string, a ...any) error { return &invalid{fmt.Sprintf(format, a...)} }

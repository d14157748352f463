package backup

import (
	"errors"
	"fmt"
)

var (
	// ErrKey: it is another key than the file's.
	ErrKey = errors.New("it does not open the backup")
	// ErrDamaged: the file is not what was written.
	ErrDamaged = errors.New("the backup was altered, damaged or cut off: nothing of it can be used; take another one")
	// ErrForeign: the file is no backup.
	ErrForeign = errors.New("the file is no skep backup")
)

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w (%s)", ErrDamaged, fmt.Sprintf(format, a...))
}

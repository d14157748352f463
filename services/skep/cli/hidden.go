package cli

import (
	"context"

	"skep.dev/services/skep/cli/hidden"
)

// askHidden asks a terminal for a line that it does not show.
func (a *app) askHidden(ctx context.Context, fd int, prompt string) ([]byte, error) {
	return hidden.Ask(ctx, fd, a.Err, prompt)
}

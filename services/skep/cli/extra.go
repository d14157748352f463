package cli

import (
	"github.com/spf13/cobra"
)

// extraCommands are those that are not about one kind of object.
func (a *app) extraCommands() []*cobra.Command {
	return []*cobra.Command{a.versionCommand(), a.infoCommand(), a.contextCommand()}
}

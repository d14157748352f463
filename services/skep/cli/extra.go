package cli

import (
	"github.com/spf13/cobra"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// extraCommands are those that are not about one kind of object.
func (a *app) extraCommands() []*cobra.Command {
	logs := a.logsCommand()
	logs.Short += " (short for service logs)"
	return []*cobra.Command{a.imageCommand(), a.volumeCommand(), a.execCommand(), logs, a.eventsCommand(), a.topCommand(), a.doctorCommand(), a.decodeCommand(),
		a.versionCommand(), a.upgradeCommand(), a.infoCommand(), a.contextCommand(), a.userCommand(), a.auditCommand(), a.backupCommand(), a.loginCommand(), a.logoutCommand()}
}

func stateWord(t *skepv1.Task) string { return render.StateWord(t.GetStatus().GetState()) }

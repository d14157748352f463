package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/fault"
)

// dockerContext is what docker takes as the name of a context.
var dockerContext = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$`)

// contextDocker prints how docker is told of this node's Docker API.
func (a *app) contextDocker() *cobra.Command {
	return &cobra.Command{Use: "docker [NAME]", Short: "Print the docker command that makes this node known to docker", Args: maxArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Print the docker command that makes this node's cluster known to docker, as context NAME (default skep). Nothing is run: docker may be another user's.\n\n" +
			"Docker's API is served on each node, at docker.sock in the run directory, and for root alone: what is of the cluster on managers. Docker's commands for nodes, services, tasks, stacks, secrets, configs and networks work.",
		Example: "  skep context docker\n  skep context docker | sh\n  docker --context skep service ls",
		RunE: func(_ *cobra.Command, args []string) error {
			name := "skep"
			if len(args) > 0 {
				name = args[0]
			}
			if !dockerContext.MatchString(name) || name == "default" {
				return Usagef("invalid name %q: docker takes two letters or more, digits, _ . + and - in the name of a context, and \"default\" is its own", name)
			}
			if c := a.contextName(); c != "" {
				return fault.Invalid("context %s is a cluster elsewhere, and Docker's API is served on its nodes alone: run this there, or use skep itself", c)
			}
			dir, err := filepath.Abs(a.runDir)
			if err != nil {
				return err
			}
			path := filepath.Join(dir, "docker.sock")
			if _, err := os.Lstat(path); err != nil {
				a.warnf("there is no %s now: is the node running, and are you root?", path)
			}
			a.printf("docker context create %s --docker %s\n", name, quoted("host=unix://"+path))
			return nil
		}}
}

// quoted is a word for the shell.
func quoted(word string) string {
	if !strings.ContainsFunc(word, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/.:=_-+,", r)
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
	"skep.dev/services/skep/cli/conn"
)

// natsPrefix begins the names of our contexts among natscli's.
const natsPrefix = "skep-"

// natsContext is a context of natscli: ~/.config/nats/context/<name>.json.
type natsContext struct {
	Description string `json:"description"`
	URL         string `json:"url"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	InboxPrefix string `json:"inbox_prefix"`
	JSAPIPrefix string `json:"jetstream_api_prefix,omitempty"`
	TLSFirst    bool   `json:"tls_first"`
}

func (a *app) contextNATS() *cobra.Command {
	return &cobra.Command{Use: "nats NAME", Short: "Make a context known to natscli, the nats command", Args: exactArgs(1), ValidArgsFunction: completeFirst(a.storedContexts),
		Long: "Write context skep-NAME for natscli, the nats command: its file and, beside it, the certificate, its key and the CA, which only you can read.\n" +
			"The broker gives it the rights of the user. `skep context rm NAME` removes it too.",
		Example: "  skep context nats prod\n  nats --context skep-prod sub 'skep.v1.event.>'\n  nats --context skep-prod micro ls\n" +
			"  nats --context skep-prod req skep.v1.api.service.inspect '{\"ref\":\"web\"}'",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.stored(args[0])
			if err != nil {
				return err
			}
			path, err := a.writeNATS(c)
			if err != nil {
				return fmt.Errorf("write context %s for natscli: %w", c.Name, err)
			}
			a.printf("%s\n", path)
			events := subject.AllEvents
			if _, role, _, err := c.User(); err == nil && role == pki.Viewer {
				events = subject.AllSeen
			}
			a.tellf("Try: nats --context %s%s sub '%s'\n", natsPrefix, c.Name, events)
			return nil
		}}
}

// natsFiles are where natscli looks for a context, and our directory of what it names.
func (a *app) natsFiles(name string) (file, dir string) {
	base := a.Getenv("XDG_CONFIG_HOME")
	if base == "" {
		base = filepath.Join(a.Getenv("HOME"), ".config")
	}
	return filepath.Join(base, "nats", "context", natsPrefix+name+".json"), filepath.Join(base, "nats", natsPrefix+name)
}

func (a *app) writeNATS(c conn.Context) (string, error) {
	inbox, err := c.Inbox()
	if err != nil {
		return "", err
	}
	file, dir := a.natsFiles(c.Name)
	n := natsContext{
		Description: "skep cluster " + c.Name, URL: "tls://" + strings.Join(c.Servers(), ",tls://"), InboxPrefix: inbox, TLSFirst: true,
		Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem"),
	}
	if c.Description != "" {
		n.Description = c.Description
	}
	if name, role, _, err := c.User(); err == nil && role != pki.Viewer {
		n.JSAPIPrefix = subject.Store(subject.Person(name))
	}
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return "", err
	}
	for _, d := range []string{dir, filepath.Dir(file)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return "", err
		}
	}
	for _, f := range []struct {
		path string
		text []byte
	}{{n.Cert, []byte(c.Cert)}, {n.Key, []byte(c.Key)}, {n.CA, []byte(c.CA)}, {file, append(b, '\n')}} {
		if err := atomicfile.Write(f.path, f.text); err != nil {
			return "", err
		}
	}
	return file, nil
}

// forgetNATS removes what contextNATS wrote, if it did.
func (a *app) forgetNATS(name string) error {
	file, dir := a.natsFiles(name)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove natscli's copy of context %s: %w", name, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove natscli's copy of context %s: %w", name, err)
	}
	return nil
}

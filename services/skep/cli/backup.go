package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	"skep.dev/libs/seal"
	"skep.dev/libs/stream"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/backupkey"
	"skep.dev/services/skep/cli/plain"
)

// backupCommand is `skep backup`; `restore` is added by who has the daemon's code.
func (a *app) backupCommand() *cobra.Command {
	return group("backup", "Make backups of the cluster, and restore it from one", a.backupCreate(), a.backupList(), a.backupInspect(), a.backupUnknown(), a.backupSettle())
}

func (a *app) backupCreate() *cobra.Command {
	var phrase string
	var unlockKey, force bool
	cmd := &cobra.Command{Use: "create [OPTIONS] [FILE|-]", Short: "Write a backup of the whole cluster into a file", Args: cobra.MaximumNArgs(1),
		Long: "Write a backup of the whole cluster into a file, or to standard output (-): services, networks, nodes, secrets with their values, the cluster's CA and\n" +
			"keys, as they all stood at one instant, while the cluster goes on. Events, images and the content of volumes are not in it.\n\n" +
			"The file is sealed under a passphrase, which is asked for, or under the cluster's unlock key. Without it nobody opens the file again.",
		Example: "  skep backup create /mnt/backups/cluster.skep\n  skep backup create --passphrase-file /root/backup.pass - | ssh store 'cat > cluster.skep'\n  skep backup create --unlock-key",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			path := ""
			if len(args) == 1 {
				path = args[0]
			}
			if _, terminal := terminalOf(a.Out); path == "-" && terminal {
				return Usagef("a backup is no text for a terminal: name a file, or send it elsewhere")
			}
			if unlockKey && phrase != "" {
				return Usagef("--unlock-key and --passphrase-file exclude each other")
			}
			if path != "" && path != "-" && !force {
				if _, err := os.Lstat(path); err == nil {
					return fault.Conflict("%s exists: name another file, or replace it with --force", path)
				}
			}
			req := &skepv1.BackupRequest{UnlockKey: unlockKey}
			var key backup.Key
			if !unlockKey {
				p, derived, err := backupkey.Source{File: phrase, In: a.In, Err: a.Err}.New(ctx)
				if err != nil {
					return err
				}
				if req.SealedKey, err = a.sealed(ctx, secretKind{}, seal.BackupKey, 0, derived); err != nil {
					return err
				}
				req.Passphrase, key = p, derived
			}
			if path == "-" {
				_, err := a.fetchBackup(ctx, req, a.Out.Raw())
				return err
			}
			return a.storeBackup(ctx, req, key, path)
		}}
	f := cmd.Flags()
	f.StringVar(&phrase, "passphrase-file", "", "File with the passphrase, which nobody else may read (default: it is asked for)")
	f.BoolVar(&unlockKey, "unlock-key", false, "Seal it under the cluster's unlock key instead of a passphrase")
	f.BoolVarP(&force, "force", "f", false, "Replace a file that exists")
	return cmd
}

// storeBackup writes the file beside its place first, so that a file of that name is always a whole backup. What a
// passphrase opens is read through before it counts.
func (a *app) storeBackup(ctx context.Context, req *skepv1.BackupRequest, key backup.Key, path string) (err error) {
	dir := "."
	if path != "" {
		dir = filepath.Dir(path)
	}
	f, err := os.CreateTemp(dir, ".skep-backup-*") // 0600
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	began := time.Now()
	if _, err = a.fetchBackup(ctx, req, f); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the backup again: %w", err)
	}
	file, err := backup.Open(f)
	if err == nil && key != nil {
		var r *backup.Reader
		if r, err = file.Unlock(key); err == nil {
			err = r.Each(backup.Visit{})
		}
	}
	if err != nil {
		return fmt.Errorf("read the backup again: %w", err)
	}
	h := file.Header
	if path == "" {
		path = backup.FileName(h.ClusterId, h.MadeAt.AsTime())
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	a.printf("%s\n", path)
	a.tellf("%d bytes in %s: %s. It opens with %s.\n", st.Size(), time.Since(began).Round(10*time.Millisecond), counted(h), backup.Opener(h))
	if h.Findings > 0 {
		a.warnf("%d things in the store do not fit together; the backup has them as they are: skep doctor", h.Findings)
	}
	return nil
}

// fetchBackup has a manager whose vault is open make one.
func (a *app) fetchBackup(ctx context.Context, req *skepv1.BackupRequest, w io.Writer) (n int64, err error) {
	nc, err := a.conn(ctx)
	if err != nil {
		return 0, err
	}
	s, err := call(ctx, a, api.AutolockGet, &skepv1.Empty{})
	if err != nil {
		return 0, err
	}
	var open []string
	for _, m := range s.Managers {
		if !m.Locked && id.Valid(m.NodeId) {
			open = append(open, m.NodeId)
		}
	}
	if len(open) == 0 {
		return 0, fault.Locked("make a backup: all managers are locked: skep unlock")
	}
	for _, node := range open {
		var sess *stream.Session
		sess, err = dial(ctx, a, nc, api.VaultBackup.At(node), req)
		if fault.Is(err, fault.CodeUnavailable) {
			continue // it is away
		}
		if err != nil {
			return 0, err
		}
		defer sess.Close()
		n, err = io.Copy(w, sess.Reader(stream.Out))
		end, werr := sess.Wait()
		switch {
		case werr != nil:
			return n, werr
		case err != nil:
			return n, fmt.Errorf("write the backup: %w", err)
		case end.GetCode() != 0:
			return n, errors.New("the manager gave up")
		}
		return n, nil
	}
	return 0, err
}

// counted is what is in a backup, in words.
func counted(h *skepv1.BackupHeader) string {
	var out []string
	for _, k := range []string{"services", "stacks", "networks", "nodes", "objects", "users"} {
		word := k
		if k == "objects" {
			word = "secrets and configs"
		}
		out = append(out, fmt.Sprintf("%d %s", h.Counts[k], word))
	}
	return strings.Join(out, ", ")
}

func (a *app) backupInspect() *cobra.Command {
	var phrase string
	var check, asJSON bool
	cmd := &cobra.Command{Use: "inspect [OPTIONS] (FILE|NAME)", Short: "Show what a backup is of, and whether it is whole", Args: exactArgs(1),
		Long: "Show what a backup is of: what stands in clear at its beginning. With --check, or a --passphrase-file, the file is opened and read to its end,\n" +
			"which proves that nothing in it was altered. A scheduled backup that lies on this machine can be given by its name (skep backup ls).",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(a.shelf().Find(args[0]))
			if err != nil {
				return fault.NotFound("%v", err)
			}
			defer f.Close()
			file, err := backup.Open(f)
			if err != nil {
				return plain.Errorf("%s: %w", args[0], err)
			}
			if check || phrase != "" {
				if err := a.checkBackup(cmd.Context(), file, backupkey.Source{File: phrase, In: a.In, Err: a.Err}); err != nil {
					return plain.Errorf("%s: %w", args[0], err)
				}
			}
			if asJSON {
				return a.jsonHeader(file.Header)
			}
			a.printHeader(file.Header)
			if check || phrase != "" {
				a.printf("Checked:   it is whole, and unaltered\n")
			}
			return nil
		}}
	cmd.Flags().StringVar(&phrase, "passphrase-file", "", "File with the passphrase (or the unlock key): the backup is checked")
	cmd.Flags().BoolVar(&check, "check", false, "Ask for the passphrase (or the unlock key), and read the backup to its end")
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print what stands in clear as JSON (a stable form)")
	return cmd
}

func (a *app) checkBackup(ctx context.Context, file *backup.File, from backupkey.Source) error {
	key, err := from.Open(ctx, file.Header)
	if err != nil {
		return err
	}
	r, err := file.Unlock(key)
	if err != nil {
		return fault.Denied("%v", err)
	}
	return r.Each(backup.Visit{})
}

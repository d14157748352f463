package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/backupkey"
)

// planFlags are the flags of `swarm update` that say when backups are made, and what they are sealed under.
type planFlags struct {
	schedule, zone, phrase string
	keep                   uint32
	unlockKey              bool
}

func (p *planFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.schedule, "backup-schedule", "", `When every manager makes a backup: a cron expression ("0 3 * * *", @daily), a duration (6h), or none`)
	f.StringVar(&p.zone, "backup-timezone", "", "Time zone of --backup-schedule (default: UTC)")
	f.Uint32Var(&p.keep, "backup-keep", spec.DefaultBackupKeep, "Scheduled backups that each manager keeps")
	f.StringVar(&p.phrase, "backup-passphrase-file", "", "File with the passphrase of scheduled backups, which nobody else may read (- = ask for it)")
	f.BoolVar(&p.unlockKey, "backup-unlock-key", false, "Seal scheduled backups under the unlock key, and forget their passphrase")
}

// given reports whether any of them was.
func (p *planFlags) given(cmd *cobra.Command) bool {
	for _, name := range []string{"backup-schedule", "backup-timezone", "backup-keep", "backup-passphrase-file", "backup-unlock-key"} {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// plan changes a cluster's plan as the flags say.
func (p *planFlags) plan(cmd *cobra.Command, s *skepv1.ClusterSpec) error {
	f := cmd.Flags()
	if p.phrase != "" && p.unlockKey {
		return Usagef("--backup-passphrase-file and --backup-unlock-key exclude each other")
	}
	next := proto.CloneOf(s.Backups)
	if f.Changed("backup-schedule") {
		expr := strings.TrimSpace(p.schedule)
		switch d, err := time.ParseDuration(expr); {
		case expr == "none":
			s.Backups = nil
			for _, other := range []string{"backup-timezone", "backup-keep"} {
				if f.Changed(other) {
					return Usagef("--%s has nothing to be of with --backup-schedule none", other)
				}
			}
			return nil
		case expr == "":
			return Usagef("--backup-schedule needs a cron expression, a duration, or none")
		case err == nil:
			expr = "@every " + d.String()
		}
		if next == nil {
			next = &skepv1.BackupPlan{Keep: p.keep}
		}
		next.Cron = expr
	}
	for _, other := range []string{"backup-timezone", "backup-keep"} {
		if next == nil && f.Changed(other) {
			return Usagef("--%s: no backups are made by a schedule: give --backup-schedule, too", other)
		}
	}
	if f.Changed("backup-timezone") {
		next.TimeZone = p.zone
	}
	if f.Changed("backup-keep") {
		next.Keep = p.keep
	}
	s.Backups = next
	return nil
}

// sealUnder sets what scheduled backups are sealed under, if the flags say so, and makes sure that there is something.
func (p *planFlags) sealUnder(ctx context.Context, a *app, s *skepv1.ClusterSpec) (opens string, err error) {
	r := &skepv1.BackupKeyRequest{UnlockKey: p.unlockKey}
	if p.phrase != "" {
		source := backupkey.Source{File: p.phrase, In: a.In, Err: a.Err}
		if p.phrase == "-" {
			source.File = ""
		}
		phrase, key, err := source.New(ctx)
		if err != nil {
			return "", err
		}
		defer clear(key)
		if r.SealedKey, err = a.sealed(ctx, secretKind{}, seal.BackupKey, 0, key); err != nil {
			return "", err
		}
		r.Passphrase = phrase
	}
	if !p.unlockKey && p.phrase == "" && s.Backups == nil { // the schedule ends
		return "", nil
	}
	got, err := call(ctx, a, api.BackupKey, r)
	if err != nil {
		return "", err
	}
	if got.Opens == "" && s.Backups != nil && !s.Autolock {
		return "", fault.Invalid("there is nothing to seal scheduled backups under: give a passphrase with --backup-passphrase-file (- = ask for it), or turn autolock on")
	}
	return got.Opens, nil
}

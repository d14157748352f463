package spec

import (
	"time"

	"skep.dev/libs/cron"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

const (
	// MinBackupPeriod is how close to one another scheduled backups may be: each reads the whole store.
	MinBackupPeriod = time.Minute
	// DefaultBackupKeep and MaxBackupKeep are how many of them a manager keeps.
	DefaultBackupKeep, MaxBackupKeep = 7, 100
)

// BackupSchedule is the schedule of a plan, nil without one.
func BackupSchedule(p *skepv1.BackupPlan) (*cron.Schedule, error) {
	if p == nil {
		return nil, nil
	}
	return cron.Parse(&skepv1.Schedule{Cron: p.Cron, TimeZone: p.TimeZone})
}

// validateBackups checks when backups are made and how many are kept.
func validateBackups(p *skepv1.BackupPlan) error {
	if p == nil {
		return nil
	}
	s, err := BackupSchedule(p)
	if err != nil {
		return err
	}
	// Not from now on: what was allowed once is allowed whenever it is checked again.
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	first := s.Next(at)
	if first.IsZero() {
		return fault.Invalid("the backup schedule %q never comes: no day within five years fits it", p.Cron)
	}
	for range 3 {
		next := s.Next(first)
		if !next.IsZero() && next.Sub(first) < MinBackupPeriod {
			return fault.Invalid("the backup schedule %q comes every %s: each backup reads the whole store, so leave %s or more between them", p.Cron, next.Sub(first), MinBackupPeriod)
		}
		first = next
	}
	if p.Keep < 1 || p.Keep > MaxBackupKeep {
		return fault.Invalid("invalid backup-keep %d: use 1 to %d", p.Keep, MaxBackupKeep)
	}
	return nil
}

package spec

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestBackupPlan(t *testing.T) {
	for _, x := range []struct {
		plan *skepv1.BackupPlan
		want string // "" = it is right
	}{
		{nil, ""},
		{&skepv1.BackupPlan{Cron: "0 3 * * *", Keep: 7}, ""},
		{&skepv1.BackupPlan{Cron: "@daily", Keep: 1, TimeZone: "Europe/Zurich"}, ""},
		{&skepv1.BackupPlan{Cron: "@every 6h0m0s", Keep: 100}, ""},
		{&skepv1.BackupPlan{Cron: "* * * * *", Keep: 7}, ""},
		{&skepv1.BackupPlan{Cron: "@every 10s", Keep: 7}, "comes every 10s: each backup reads the whole store, so leave 1m0s or more between them"},
		{&skepv1.BackupPlan{Cron: "0 3 30 2 *", Keep: 7}, "never comes"},
		{&skepv1.BackupPlan{Cron: "tomorrow", Keep: 7}, "invalid schedule"},
		{&skepv1.BackupPlan{Keep: 7}, "a schedule needs a cron expression"},
		{&skepv1.BackupPlan{Cron: "@daily", TimeZone: "Mars", Keep: 7}, "unknown time zone"},
		{&skepv1.BackupPlan{Cron: "@daily"}, "invalid backup-keep 0: use 1 to 100"},
		{&skepv1.BackupPlan{Cron: "@daily", Keep: 101}, "invalid backup-keep 101"},
	} {
		err := ValidateCluster(&skepv1.ClusterSpec{Backups: x.plan})
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%v: %v", x.plan, err)
		}
	}
	c := &skepv1.ClusterSpec{Backups: &skepv1.BackupPlan{Cron: "@daily"}}
	if ClusterDefaults(c); c.Backups.Keep != DefaultBackupKeep {
		t.Error(c.Backups)
	}
}

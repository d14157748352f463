package doctor

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	skepv1 "skep.dev/proto/skep/v1"
)

func TestBackupFindings(t *testing.T) {
	daily := &skepv1.BackupPlan{Cron: "@every 24h", Keep: 7, Since: timestamppb.New(testNow.Add(-100 * day))}
	// answer is a manager whose newest backup is so old.
	answer := func(age time.Duration, failed string) NodeBackups {
		r := &skepv1.KeptBackupsReply{NodeId: "id-m1", Failed: failed}
		if age != 0 {
			r.Backups = []*skepv1.KeptBackup{{Name: "b", Due: timestamppb.New(testNow.Add(-age)), Header: &skepv1.BackupHeader{MadeBy: "id-m1"}}}
		}
		return NodeBackups{Reply: r}
	}
	for name, x := range map[string]struct {
		cluster *skepv1.ClusterSpec
		answer  NodeBackups
		want    string // the line's beginning, "" = nothing but good
	}{
		"no schedule":    {&skepv1.ClusterSpec{}, answer(0, ""), ""},
		"a restore":      {&skepv1.ClusterSpec{Restored: true}, answer(0, ""), "warning restore: the cluster was restored from a backup, and that is not settled"},
		"in time":        {&skepv1.ClusterSpec{Backups: daily}, answer(5*time.Hour, ""), ""},
		"one missed":     {&skepv1.ClusterSpec{Backups: daily}, answer(47*time.Hour, ""), ""},
		"two missed":     {&skepv1.ClusterSpec{Backups: daily}, answer(49*time.Hour, ""), "warning backups of m1: the newest is of 2026-03-02 04:06 UTC, and two were due since; skep's log there says why"},
		"two failed":     {&skepv1.ClusterSpec{Backups: daily}, answer(49*time.Hour, "no space"), "warning backups of m1: the newest is of 2026-03-02 04:06 UTC, and two were due since: no space; skep's log"},
		"one failed":     {&skepv1.ClusterSpec{Backups: daily}, answer(25*time.Hour, "no space"), "warning backups of m1: the newest that was due is not made: no space"},
		"none at all":    {&skepv1.ClusterSpec{Backups: daily}, answer(0, ""), "warning backups of m1: it has made none yet, although two were due"},
		"a new schedule": {&skepv1.ClusterSpec{Backups: &skepv1.BackupPlan{Cron: "@every 24h", Since: timestamppb.New(testNow.Add(-time.Hour))}}, answer(0, ""), ""},
		"of the future":  {&skepv1.ClusterSpec{Backups: daily}, answer(-365*day, ""), "warning backups of m1: it has made none yet"},
		"no answer":      {&skepv1.ClusterSpec{Backups: daily}, NodeBackups{Err: errors.New("nobody answers")}, "warning backups of m1: it does not say which scheduled backups it keeps: nobody answers"},
		"another node's": {&skepv1.ClusterSpec{Backups: daily}, NodeBackups{Reply: &skepv1.KeptBackupsReply{NodeId: "id-m1", Backups: []*skepv1.KeptBackup{
			{Name: "b", Due: timestamppb.New(testNow.Add(-time.Hour)), Header: &skepv1.BackupHeader{MadeBy: "before"}}}}}, "warning backups of m1: it has made none yet"},
	} {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			x.answer.Node = p.After.Nodes[0]
			p.Cluster, p.Backups = &skepv1.Cluster{Spec: x.cluster}, []NodeBackups{x.answer}
			var bad []string
			for _, c := range Examine(*p) {
				if c.Status != OK {
					bad = append(bad, string(c.Status)+" "+c.Check+": "+c.Text)
				}
			}
			if x.want == "" && len(bad) > 0 || x.want != "" && (len(bad) != 1 || !strings.HasPrefix(bad[0], x.want)) {
				t.Errorf("%q, not %q", bad, x.want)
			}
		})
	}
}

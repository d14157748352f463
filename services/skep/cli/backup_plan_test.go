package cli

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// What is wrong with a plan is said before anything is asked of the managers; what is right is sent as it is meant.
func TestBackupSchedule(t *testing.T) {
	c := newCluster(t)
	var mu sync.Mutex
	opens := ""
	serve(c, c.rs, api.BackupKey, func(r *skepv1.BackupKeyRequest) (*skepv1.BackupKeyReply, error) {
		mu.Lock()
		defer mu.Unlock()
		return &skepv1.BackupKeyReply{Opens: opens}, nil
	})
	for _, x := range []struct{ args, want string }{
		{"--backup-keep 3", "--backup-keep: no backups are made by a schedule: give --backup-schedule, too"},
		{"--backup-timezone Europe/Zurich", "--backup-timezone: no backups are made"},
		{"--backup-schedule none --backup-keep 3", "--backup-keep has nothing to be of"},
		{"--backup-schedule 30s", "comes every 30s: each backup reads the whole store"},
		{"--backup-schedule tomorrow", "invalid schedule"},
		{"--backup-schedule @daily --backup-keep 0", "invalid backup-keep 0"},
		{"--backup-schedule @daily --backup-keep 101", "invalid backup-keep 101"},
		{"--backup-schedule @daily --backup-timezone Mars", "unknown time zone"},
		{"--backup-unlock-key --backup-passphrase-file x", "exclude each other"},
	} {
		want(t, c.run(append([]string{"swarm", "update"}, strings.Fields(x.args)...)...), ExitUsage, "", x.want)
	}
	// Nothing to seal them under: refused, and nothing was changed.
	want(t, c.run("swarm", "update", "--backup-schedule", "@daily"), 1, "", "there is nothing to seal scheduled backups under: give a passphrase with --backup-passphrase-file")
	c.mu.Lock()
	for _, m := range c.calls {
		if _, ok := m.(*skepv1.UpdateClusterRequest); ok {
			t.Error("something was changed")
		}
	}
	c.mu.Unlock()
	mu.Lock()
	opens = "unlock key abc, made yesterday"
	mu.Unlock()
	want(t, c.run("swarm", "update", "--backup-schedule", "6h", "--backup-keep", "3"), 0, "Swarm updated.\n", "Scheduled backups open with unlock key abc, made yesterday.\n")
	if p := sent[*skepv1.UpdateClusterRequest](c).Spec.Backups; p.GetCron() != "@every 6h0m0s" || p.Keep != 3 {
		t.Error(p)
	}
	want(t, c.run("swarm", "update", "--backup-schedule", "0 3 * * *", "--backup-timezone", "Europe/Zurich"), 0, "Swarm updated.\n", "")
	if p := sent[*skepv1.UpdateClusterRequest](c).Spec.Backups; p.GetCron() != "0 3 * * *" || p.TimeZone != "Europe/Zurich" || p.Keep != 7 {
		t.Error(p)
	}
	want(t, c.run("swarm", "update", "--backup-schedule", "none"), 0, "Swarm updated.\n", "")
	if p := sent[*skepv1.UpdateClusterRequest](c).Spec.Backups; p != nil {
		t.Error(p)
	}
	// A passphrase that others may read.
	phrase := filepath.Join(t.TempDir(), "phrase")
	if err := os.WriteFile(phrase, []byte("correct horse\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	want(t, c.run("swarm", "update", "--backup-schedule", "@daily", "--backup-passphrase-file", phrase), 1, "", "others may read")
}

// The list shows every manager's, the newest first, and who does not answer.
func TestScheduledBackupsAreListed(t *testing.T) {
	c := newCluster(t)
	c.nodes[0].Manager = &skepv1.ManagerStatus{}
	other := &skepv1.Node{Meta: &skepv1.Meta{Id: node2}, Spec: &skepv1.NodeSpec{}, Description: &skepv1.NodeDescription{Hostname: "w2"}, Status: &skepv1.NodeLive{}, Manager: &skepv1.ManagerStatus{}}
	c.nodes = append(c.nodes, other)
	kept := func(name string, age time.Duration) *skepv1.KeptBackup {
		at := timestamppb.New(testNow.Add(-age))
		return &skepv1.KeptBackup{Name: name, Size: 5 << 20, Due: at, Header: &skepv1.BackupHeader{MadeAt: at, ClusterId: "cl", SkepVersion: "0.1.0", UnlockKey: &skepv1.BackupUnlockKey{Id: "abc", MadeAt: timestamppb.New(testNow.Add(-1000 * time.Hour))}}}
	}
	serve(c, c.rs, api.VaultBackups.At(nodeID), func(*skepv1.Empty) (*skepv1.KeptBackupsReply, error) {
		return &skepv1.KeptBackupsReply{NodeId: nodeID, Hostname: "w1", Backups: []*skepv1.KeptBackup{kept("b.backup", time.Hour), kept("a.backup", 7*time.Hour)}, Failed: "no space", FailedAt: timestamppb.New(testNow.Add(-time.Minute))}, nil
	})
	serve(c, c.rs, api.VaultBackups.At(node2), func(*skepv1.Empty) (*skepv1.KeptBackupsReply, error) {
		return nil, fault.Unavailable("the disk is gone")
	})
	got := c.run("backup", "ls")
	for _, text := range []string{"b.backup   w1        About an hour   5MiB      unlock key abc", "a.backup   w1        7 hours"} {
		if !strings.Contains(got.out, text) {
			t.Errorf("%q is not in\n%s", text, got.out)
		}
	}
	if strings.Index(got.out, "b.backup") > strings.Index(got.out, "a.backup") {
		t.Error(got.out)
	}
	for _, text := range []string{"w2 does not say what backups it keeps: the disk is gone", "w1 failed to make the newest one about a minute ago: no space"} {
		if !strings.Contains(got.err, text) {
			t.Errorf("%q is not in\n%s", text, got.err)
		}
	}
	want(t, c.run("backup", "ls", "-q"), 0, "b.backup\na.backup\n", "")
}

package doctor

import (
	"time"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// NodeBackups is what a manager says of the scheduled backups that lie there, or why nothing is known.
type NodeBackups struct {
	Node  *skepv1.Node
	Reply *skepv1.KeptBackupsReply
	Err   error
}

// backupSlack is what a backup may take: the time itself is not late yet.
const backupSlack = 2 * time.Minute

// backups tells of a restore that nobody has settled, and of managers whose newest scheduled backup is old.
func (d *exam) backups() {
	const check = "backups"
	if d.Cluster.GetSpec().GetRestored() {
		d.add(Warn, "restore", "the cluster was restored from a backup, and that is not settled: tasks nobody knows of run on, and nodes that are away are waited for. Look with `skep backup unknown`, then `skep backup settle`")
	}
	plan := d.Cluster.GetSpec().GetBackups()
	sched, err := spec.BackupSchedule(plan)
	if sched == nil || err != nil {
		return
	}
	since, fine := len(d.out), 0
	for _, m := range d.Backups {
		name := render.Hostname(m.Node)
		check := "backups of " + name
		if m.Err != nil {
			if st := m.Node.GetStatus().GetState(); st == skepv1.NodeState_NODE_STATE_READY && !fault.Is(m.Err, fault.CodeLocked) && !d.lockedNode(m.Node.GetMeta().GetId()) {
				d.add(Warn, check, "it does not say which scheduled backups it keeps: %v", m.Err)
			}
			continue
		}
		var last time.Time
		for _, b := range m.Reply.GetBackups() {
			if due := b.Due.AsTime(); b.GetHeader().GetMadeBy() == m.Reply.NodeId && due.After(last) && !due.After(d.Now.Add(backupSlack)) {
				last = due
			}
		}
		why := ""
		if m.Reply.Failed != "" {
			why = ": " + m.Reply.Failed
		}
		// Two times that were due since, and what one takes: then nothing was made for more than two periods.
		from := last
		if at := plan.GetSince().AsTime(); at.After(from) {
			from = at
		}
		second := sched.Next(sched.Next(from))
		switch {
		case !second.IsZero() && d.Now.After(second.Add(backupSlack)) && last.IsZero():
			d.add(Warn, check, "it has made none yet, although two were due%s; skep's log there says why", why)
		case !second.IsZero() && d.Now.After(second.Add(backupSlack)):
			d.add(Warn, check, "the newest is of %s, and two were due since%s; skep's log there says why", last.UTC().Format("2006-01-02 15:04 MST"), why)
		case why != "":
			d.add(Warn, check, "the newest that was due is not made%s", why)
		default:
			fine++
		}
	}
	if len(d.Backups) > 0 {
		d.found(since, check, "the newest scheduled backup of %s is in time (%s)", count(fine, "manager"), plan.Cron)
	}
}

func (d *exam) lockedNode(id string) bool {
	for _, m := range d.Lock.GetManagers() {
		if m.NodeId == id && m.Locked {
			return true
		}
	}
	return false
}

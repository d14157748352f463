package doctor

// lock tells of managers that wait for the unlock key, and of those whose disk another key opens than the current one.
func (d *exam) lock() {
	if d.Lock == nil {
		return
	}
	var locked, open, behind []string
	ids := map[string]bool{}
	for _, n := range d.After.Nodes {
		if n.Manager != nil {
			ids[n.GetMeta().GetId()] = true
		}
	}
	for _, m := range d.Lock.Managers {
		switch {
		case !ids[m.NodeId]: // it has left
		case m.Locked:
			locked = append(locked, m.Hostname)
		case m.Key.GetId() != d.Lock.Key.GetId():
			behind = append(behind, m.Hostname)
		default:
			open = append(open, m.Hostname)
		}
	}
	switch {
	case len(locked) > 0 && len(open)+len(behind) == 0:
		d.add(Error, "secrets", "locked: %s waits for the unlock key, and until then nodes do not join, certificates are not renewed and no task gets secrets: skep unlock", list(locked))
	case len(locked) > 0:
		d.add(Warn, "secrets", "%s waits for the unlock key: skep unlock", list(locked))
	case len(behind) > 0:
		d.add(Warn, "secrets", "the disk of %s does not follow the cluster's unlock key yet: the old key (or none) opens it; its log says why", list(behind))
	case d.Lock.On:
		d.add(OK, "secrets", "autolock is on, %s unlocked", count(len(open), "manager"))
	}
}

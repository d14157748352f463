package cli

import (
	"context"
	"errors"
	"time"

	"skep.dev/libs/member"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/render"
)

// standing is how this machine's node is, as far as it can be known here.
type standing struct {
	state string    // what the daemon says (ready, starting, …), how it stands with the managers, or inactive, down, unknown
	why   string    // "" of one that is well
	since time.Time // zero: not known
}

// line is the standing for people.
func (s standing) line(now time.Time) string {
	if s.why == "" {
		return s.state
	}
	return s.state + prefixed(": ", s.text(now))
}

// text says what is wrong, and since when.
func (s standing) text(now time.Time) string {
	if s.since.IsZero() || s.why == "" {
		return s.why
	}
	return s.why + " (last heard " + render.Ago(s.since, now) + ")"
}

// docker is Docker's word for it.
func (s standing) docker() string {
	switch s.state {
	case "ready", "active":
		return "active"
	case "starting":
		return "pending"
	case "inactive", "locked", "unknown":
		return s.state
	}
	return "error"
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// standing asks the daemon of this machine what its node is, and how it stands with the managers.
func (a *app) standing(ctx context.Context) (conn.Info, standing) {
	i, err := a.localInfo(ctx)
	switch {
	case errors.Is(err, conn.ErrNotRoot):
		return i, standing{state: "unknown", why: err.Error() + ": run skep info as root, or use a context"}
	case err != nil:
		return a.absent()
	case i.NodeID == "":
		return i, standing{state: "inactive"}
	case i.Error != "":
		return i, standing{state: "error", why: i.Error}
	case i.State != "ready" && i.State != "":
		return i, standing{state: i.State}
	}
	s := standing{state: i.State}
	if s.state == "" {
		s.state = "active"
	}
	link := a.Link
	if link == nil {
		link = func(ctx context.Context) (conn.Link, error) { return conn.LocalLink(ctx, a.runDir) }
	}
	l, err := link(ctx)
	if err != nil || l.State == member.LinkUp || l.State == "" {
		return i, s // a daemon that is older, or starts, says nothing of it
	}
	s = standing{state: l.State, why: l.Why}
	if l.SinceMs > 0 {
		s.since = time.UnixMilli(l.SinceMs)
	}
	return i, s
}

// absent is a machine without a daemon: it may be a node all the same.
func (a *app) absent() (conn.Info, standing) {
	paths := member.DefaultPaths
	if a.Info != nil || a.contextName() != "" || a.runDir != paths.Run {
		return conn.Info{}, standing{state: "inactive"}
	}
	rec, err := member.Load(paths)
	if err != nil {
		return conn.Info{}, standing{state: "inactive"}
	}
	return conn.Info{NodeID: rec.NodeID, ClusterID: rec.ClusterID, Hostname: rec.Hostname, Addr: rec.Host(), ManagerAddrs: rec.ManagerAddrs(), Role: rec.Role},
		standing{state: "down", why: "the daemon of this node does not run: systemctl start skep, or see its log"}
}

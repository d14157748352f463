package doctor

import (
	"fmt"
	"time"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// filesSettle is how long after a change of a service its tasks may run with what they had before. Nodes look by
// themselves every five minutes, but they are told at once.
const filesSettle = 15 * time.Second

// files looks for tasks that run with other versions of secrets and configs than their service uses.
func (d *exam) files() {
	since := len(d.out)
	holders := 0
	for _, s := range d.settled.services {
		if m := s.GetSpec().GetMode(); m.GetReplicatedJob() != nil || m.GetGlobalJob() != nil || d.changing(s) {
			continue // a run of a job ends with what it began with
		}
		wants := references(s)
		if len(wants) == 0 {
			continue
		}
		var stale []string
		for _, t := range d.After.Tasks {
			if t.ServiceId != s.GetMeta().GetId() || d.settled.running[t.GetMeta().GetId()] == nil {
				continue
			}
			holds := t.GetStatus().GetFiles()
			if len(holds) > 0 {
				holders++
			}
			for _, h := range holds {
				if w, ok := wants[h.Id]; ok && w.version != h.Version {
					stale = append(stale, fmt.Sprintf("%s on node %s has version %d of %s, not %d", t.Name, d.on(t), h.Version, w.name, w.version))
					break
				}
			}
		}
		if len(stale) == 0 {
			continue
		}
		name := s.GetSpec().GetName()
		next := fmt.Sprintf("`skep service ps %s` says how its update stands, `skep service update --force %s` replaces its tasks", name, name)
		if c := s.GetSpec().GetTask().GetContainer(); c.GetSecretUpdateSignal() != "" || c.GetConfigUpdateSignal() != "" {
			next = fmt.Sprintf("if it is still so in five minutes, look for \"newer secrets\" in skep's log there; `skep service update --force %s` replaces its tasks", name)
		}
		d.add(Warn, "service "+name, "%s with another version of a secret or config than the service: %s; %s", runs(len(stale)), list(stale), next)
	}
	if holders > 0 {
		d.found(since, "secrets of tasks", "%s with the versions that the services use", runs(holders))
	}
}

func runs(n int) string {
	if n == 1 {
		return "1 task runs"
	}
	return fmt.Sprintf("%d tasks run", n)
}

// changing: its tasks are being given the newest version now, or may not have been told yet.
func (d *exam) changing(s *skepv1.Service) bool {
	switch s.GetUpdateStatus().GetState() {
	case "updating", "canary", "rollback_started":
		return true
	}
	at := s.GetMeta().GetUpdatedAt()
	return at != nil && d.Now.Sub(at.AsTime()) < filesSettle
}

type reference struct {
	name    string
	version uint64
}

// references are the secrets and configs of a service, by id. One that it has twice, in two versions, says nothing.
func references(s *skepv1.Service) map[string]reference {
	c := s.GetSpec().GetTask().GetContainer()
	out, twice := map[string]reference{}, map[string]bool{}
	for _, k := range []struct {
		kind skepv1.SecretKind
		refs []*skepv1.FileReference
	}{{skepv1.SecretKind_SECRET_KIND_SECRET, c.GetSecrets()}, {skepv1.SecretKind_SECRET_KIND_CONFIG, c.GetConfigs()}} {
		for _, f := range k.refs {
			if was, ok := out[f.Id]; ok && was.version != f.Version {
				twice[f.Id] = true
			}
			if f.Id != "" && f.Version != 0 {
				out[f.Id] = reference{spec.KindWord(k.kind) + " " + f.Name, f.Version}
			}
		}
	}
	for id := range twice {
		delete(out, id)
	}
	return out
}

// on is the name of a task's node.
func (d *exam) on(t *skepv1.Task) string {
	if t.NodeHostname != "" {
		return t.NodeHostname
	}
	return d.name(t.NodeId)
}

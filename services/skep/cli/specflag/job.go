package specflag

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

type scheduleFlags struct {
	cron, zone  *scalar[string]
	concurrency *scalar[skepv1.Concurrency]
	keep        *scalar[[2]*uint32]
	catchUp     *scalar[time.Duration]
}

func (f *Flags) registerJob() {
	f.schedule = scheduleFlags{
		cron: addScalar(f, "schedule", "", "cron", `Run the job at these times: five fields like "*/5 * * * *", @hourly, or @every 10m`, text),
		zone: addScalar(f, "schedule-timezone", "", "string", "Time zone of the schedule, like Europe/Zurich (default UTC)", text),
		concurrency: addScalar(f, "schedule-concurrency", "", "string", `When the run before still goes: "allow" both, "forbid" the new one, or "replace" the old one (default forbid)`,
			parseConcurrency),
		keep:    addScalar(f, "schedule-keep", "", "runs", "Runs whose tasks and logs are kept: COMPLETED[,FAILED] (default 3,1)", parseKeep),
		catchUp: addScalar(f, "schedule-catch-up", "", "duration", "Make up for a missed time within this long (0s = never; default 1m)", parseDuration("schedule-catch-up")),
	}
	f.depends = addPair(f, "depends-on", "", "list", "Start the first tasks once a service is as far: NAME[:started|healthy|completed] (default started)",
		"Wait for a service: NAME[:started|healthy|completed] (default started)", "Wait for a service no longer", one(parseDependency), text)
}

var parseConcurrency = choice(`invalid value "%s" for --schedule-concurrency: it must be "allow", "forbid" or "replace"`, map[string]skepv1.Concurrency{
	"allow": skepv1.Concurrency_CONCURRENCY_ALLOW, "forbid": skepv1.Concurrency_CONCURRENCY_FORBID, "replace": skepv1.Concurrency_CONCURRENCY_REPLACE,
})

// parseKeep reads COMPLETED[,FAILED]; what is left out stays as it is.
func parseKeep(s string) ([2]*uint32, error) {
	var out [2]*uint32
	parts := strings.Split(s, ",")
	if len(parts) > 2 {
		return out, invalidf("invalid value %q for --schedule-keep: write it as 3 or 3,1", s)
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(strings.TrimSpace(p), 10, 31)
		if err != nil {
			return out, invalidf("invalid value %q for --schedule-keep: write it as 3 or 3,1", s)
		}
		out[i] = proto.Uint32(uint32(n))
	}
	return out, nil
}

func parseDependency(s string) (*skepv1.Dependency, error) {
	name, word, given := strings.Cut(s, ":")
	d := &skepv1.Dependency{Service: name, Condition: skepv1.Dependency_CONDITION_STARTED}
	if name == "" {
		return nil, invalidf("invalid value %q for --depends-on: write it as NAME or NAME:healthy", s)
	}
	if !given {
		return d, nil
	}
	switch word {
	case "started":
	case "healthy":
		d.Condition = skepv1.Dependency_CONDITION_HEALTHY
	case "completed":
		d.Condition = skepv1.Dependency_CONDITION_COMPLETED
	default:
		return nil, invalidf("invalid condition %q of --depends-on %s: it must be started, healthy or completed", word, name)
	}
	return d, nil
}

// apply lays the flags over a schedule; an empty --schedule takes it away.
func (f *scheduleFlags) apply(s *skepv1.Schedule) (*skepv1.Schedule, error) {
	others := f.zone.set || f.concurrency.set || f.keep.set || f.catchUp.set
	if f.cron.set && strings.TrimSpace(f.cron.val) == "" {
		if others {
			return nil, invalidf("--schedule-* flags make no sense with an empty --schedule, which takes the schedule away")
		}
		return nil, nil
	}
	if s == nil {
		if !f.cron.set {
			if others {
				return nil, invalidf("--schedule-* flags need --schedule")
			}
			return nil, nil
		}
		s = &skepv1.Schedule{}
	}
	if f.cron.set {
		s.Cron = strings.Join(strings.Fields(f.cron.val), " ")
	}
	if f.zone.set {
		s.TimeZone = f.zone.val
	}
	if f.concurrency.set {
		s.Concurrency = f.concurrency.val
	}
	if f.keep.set {
		s.KeepCompleted = f.keep.val[0]
		if f.keep.val[1] != nil {
			s.KeepFailed = f.keep.val[1]
		}
	}
	if f.catchUp.set {
		s.CatchUp = durationpb.New(f.catchUp.val)
	}
	return s, nil
}

// applyDepends removes first, so that one call can change the condition of a dependency.
func (f *Flags) applyDepends(s *skepv1.ServiceSpec) error {
	if !f.depends.touched() {
		return nil
	}
	find := func(ref string) (string, error) {
		if f.ServiceID == nil || slices.ContainsFunc(s.DependsOn, func(d *skepv1.Dependency) bool { return d.Service == ref }) {
			return ref, nil
		}
		return f.ServiceID(ref)
	}
	for _, ref := range f.depends.rm.vals {
		id, err := find(ref)
		if err != nil {
			return err
		}
		n := len(s.DependsOn)
		s.DependsOn = slices.DeleteFunc(s.DependsOn, func(d *skepv1.Dependency) bool { return d.Service == id })
		if len(s.DependsOn) == n {
			return invalidf("the service does not depend on %s", ref)
		}
	}
	for _, d := range f.depends.add.vals {
		id, err := find(d.Service)
		if err != nil {
			return err
		}
		s.DependsOn = replaceOrAppend(s.DependsOn, &skepv1.Dependency{Service: id, Condition: d.Condition}, func(o *skepv1.Dependency) bool { return o.Service == id })
	}
	return nil
}

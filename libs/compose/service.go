package compose

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/constraint"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// deploy is the service's section, empty when it has none.
func (s *service) deploy() types.DeployConfig {
	if s.in.Deploy == nil {
		return types.DeployConfig{}
	}
	return *s.in.Deploy
}

func (s *service) image() {
	switch {
	case s.in.Image == "" && s.in.Build != nil:
		s.wrongAt(s.at("build"), "the service has build but no image: build it, push it, and name it in image")
		return
	case s.in.Image == "":
		s.wrongAt(s.path, "the service has no image: name one")
		return
	}
	if _, err := spec.NormalizeImage(s.in.Image); err != nil {
		s.wrongAt(s.at("image"), "%v", err)
		return
	}
	s.out.Task.Container.Image = s.in.Image
}

// mode reads deploy.mode and the number of replicas.
func (s *service) mode() {
	d := s.deploy()
	replicas := d.Replicas
	if s.in.Scale != nil {
		if replicas != nil && *replicas != *s.in.Scale {
			s.wrongAt(s.at("scale"), "it is %d and deploy.replicas is %d: remove one of them", *s.in.Scale, *replicas)
		}
		replicas = s.in.Scale
	}
	n := uint64(1)
	if replicas != nil {
		if *replicas < 0 {
			s.wrongAt(s.at("deploy", "replicas"), "it is below 0")
			return
		}
		n = uint64(*replicas)
	}
	switch d.Mode {
	case "", "replicated":
		s.out.Mode = spec.Replicated(n)
	case "replicated-job":
		s.out.Mode = job(n, n)
	case "global", "global-job":
		if replicas != nil {
			s.wrongAt(s.at("deploy", "replicas"), "a service of mode %s runs once on every node: remove replicas, or the mode", d.Mode)
		}
		s.out.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}
		if d.Mode == "global-job" {
			s.out.Mode = &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}
		}
	default:
		s.wrongAt(s.at("deploy", "mode"), "unknown mode: use replicated, global, replicated-job or global-job")
	}
	s.out.Labels = s.labels(d.Labels)
	s.out.Labels[LabelImage] = s.in.Image
}

func job(concurrent, total uint64) *skepv1.ServiceMode {
	return &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: &skepv1.ReplicatedJobMode{
		MaxConcurrent: concurrent, TotalCompletions: total}}}
}

// single: there is never more than one task.
func (s *service) single() bool {
	n, counted := spec.Replicas(s.out)
	return counted && n <= 1
}

// restart reads deploy.restart_policy, and restart where there is none.
func (s *service) restart() {
	if p := s.deploy().RestartPolicy; p != nil {
		if s.in.Restart != "" {
			s.noteAt(s.at("restart"), "it has no effect: deploy.restart_policy says when the service is restarted")
		}
		out := &skepv1.RestartPolicy{Delay: duration(p.Delay), Window: duration(p.Window)}
		if p.MaxAttempts != nil {
			out.MaxAttempts = *p.MaxAttempts
		}
		switch p.Condition {
		case "":
		case "none":
			out.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
		case "on-failure":
			out.Condition = skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE
		case "any":
			out.Condition = skepv1.RestartCondition_RESTART_CONDITION_ANY
		case "always", "unless-stopped":
			s.wrongAt(s.at("deploy", "restart_policy", "condition"), "%s is a word of restart: here it is any", p.Condition)
		default:
			s.wrongAt(s.at("deploy", "restart_policy", "condition"), "unknown condition: use none, on-failure or any")
		}
		s.out.Task.Restart = out
		return
	}
	if s.in.Restart == "" {
		return
	}
	word, attempts, _ := strings.Cut(s.in.Restart, ":")
	out := &skepv1.RestartPolicy{}
	switch word {
	case "always", "unless-stopped":
		out.Condition = skepv1.RestartCondition_RESTART_CONDITION_ANY
	case "on-failure":
		out.Condition = skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE
		if attempts != "" {
			n, err := strconv.ParseUint(attempts, 10, 32)
			if err != nil {
				s.wrongAt(s.at("restart"), "the number after on-failure: is none")
			}
			out.MaxAttempts = n
		}
	case "no":
		out.Condition = skepv1.RestartCondition_RESTART_CONDITION_NONE
	default:
		s.wrongAt(s.at("restart"), "unknown word: use no, always, unless-stopped or on-failure, or deploy.restart_policy")
		return
	}
	s.noteAt(s.at("restart"), "read as deploy.restart_policy.condition: %s", strings.ReplaceAll(spec.Word(out.Condition), "_", "-"))
	s.out.Task.Restart = out
}

func (s *service) placement() {
	p := s.deploy().Placement
	out := s.out.Task.Placement
	for i, c := range p.Constraints {
		if err := constraint.Check([]string{c}); err != nil {
			s.wrongAt(s.at("deploy", "placement", "constraints", itoa(i)), "%v", err)
		}
	}
	out.Constraints = p.Constraints
	for _, pref := range p.Preferences {
		out.Preferences = append(out.Preferences, &skepv1.PlacementPreference{Spread: pref.Spread})
	}
	out.MaxReplicasPerNode = p.MaxReplicas
}

func (s *service) updates() {
	d := s.deploy()
	s.out.Update = s.update("update_config", d.UpdateConfig)
	s.out.Rollback = s.update("rollback_config", d.RollbackConfig)
}

func (s *service) update(key string, u *types.UpdateConfig) *skepv1.UpdateConfig {
	if u == nil {
		return nil
	}
	out := &skepv1.UpdateConfig{Parallelism: 1}
	if u.Parallelism != nil {
		out.Parallelism = *u.Parallelism
	}
	if u.Delay != 0 {
		out.Delay = duration(&u.Delay)
	}
	if u.Monitor != 0 {
		out.Monitor = duration(&u.Monitor)
	}
	if u.MaxFailureRatio != 0 {
		// A 32-bit number: its shortest text is what was written.
		out.MaxFailureRatio, _ = strconv.ParseFloat(strconv.FormatFloat(float64(u.MaxFailureRatio), 'g', -1, 32), 64)
	}
	switch u.FailureAction {
	case "":
	case "pause":
		out.FailureAction = skepv1.FailureAction_FAILURE_ACTION_PAUSE
	case "continue":
		out.FailureAction = skepv1.FailureAction_FAILURE_ACTION_CONTINUE
	case "rollback":
		if key == "rollback_config" {
			s.wrongAt(s.at("deploy", key, "failure_action"), "a rollback that fails cannot be rolled back: use pause or continue")
		}
		out.FailureAction = skepv1.FailureAction_FAILURE_ACTION_ROLLBACK
	default:
		s.wrongAt(s.at("deploy", key, "failure_action"), "unknown action: use pause, continue or rollback")
	}
	switch u.Order {
	case "":
	case "stop-first":
		out.Order = skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST
	case "start-first":
		out.Order = skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST
	default:
		s.wrongAt(s.at("deploy", key, "order"), "unknown order: use stop-first or start-first")
	}
	if spec.IsJob(s.out) {
		s.wrongAt(s.at("deploy", key), "jobs have none: remove it")
	}
	return out
}

func duration(d *types.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(goDuration(*d))
}

// dependencies reads depends_on, once every service's mode is known.
func (s *stack) dependencies() {
	byName := map[string]*service{}
	for _, one := range s.services {
		byName[one.name] = one
	}
	edges := map[string][]string{}
	for _, one := range s.services {
		for _, on := range slices.Sorted(maps.Keys(one.in.DependsOn)) {
			d, path := one.in.DependsOn[on], one.at("depends_on", on)
			other := byName[on]
			if other == nil {
				_, off := s.project.DisabledServices[on]
				switch {
				case !d.Required:
					s.noteAt(path, "it is left out: the stack has no service %s", on)
				case off:
					s.wrongAt(path, "the service %s belongs to a profile that is off: name the profile with --profile, or write required: false", on)
				default:
					s.wrongAt(path, "there is no service %s%s", on, nearest(on, slices.Collect(maps.Keys(byName))))
				}
				continue
			}
			edges[one.name] = append(edges[one.name], on)
			dep := &skepv1.Dependency{Service: other.out.Name, Condition: skepv1.Dependency_CONDITION_STARTED}
			switch d.Condition {
			case "", types.ServiceConditionStarted:
			case types.ServiceConditionHealthy:
				dep.Condition = skepv1.Dependency_CONDITION_HEALTHY
			case types.ServiceConditionCompletedSuccessfully:
				dep.Condition = skepv1.Dependency_CONDITION_COMPLETED
				other.mustComplete(one, path)
			default:
				s.wrongAt(path, "unknown condition: use service_started, service_healthy or service_completed_successfully")
			}
			one.out.DependsOn = append(one.out.DependsOn, dep)
		}
	}
	if cycle := findCycle(edges); len(cycle) > 0 {
		s.wrongAt([]string{"services", cycle[0], "depends_on"}, "the services wait for each other: %s", strings.Join(append(cycle, cycle[0]), " → "))
	}
}

// mustComplete makes a service that another one waits for a job, unless its mode was chosen.
func (s *service) mustComplete(waiting *service, path []string) {
	if spec.IsJob(s.out) {
		return
	}
	if s.deploy().Mode != "" {
		s.wrongAt(path, "%s waits for %s to complete, which it never does: give it deploy.mode replicated-job", waiting.name, s.name)
		return
	}
	if s.out.Update != nil || s.out.Rollback != nil {
		s.wrongAt(path, "%s waits for %s to complete, which has an update_config or rollback_config, so it is no job: remove them", waiting.name, s.name)
		return
	}
	n, _ := spec.Replicas(s.out)
	s.out.Mode = job(n, n)
	s.noteAt(s.path, "it runs as a job (deploy.mode replicated-job), as %s waits for it to complete", waiting.name)
	if s.out.Task.Restart.GetCondition() != skepv1.RestartCondition_RESTART_CONDITION_NONE {
		if s.out.Task.Restart == nil {
			s.out.Task.Restart = &skepv1.RestartPolicy{}
		}
		s.out.Task.Restart.Condition = skepv1.RestartCondition_RESTART_CONDITION_ON_FAILURE
	}
}

// findCycle returns services that wait for each other in a ring, the same one every time.
func findCycle(edges map[string][]string) []string {
	const open, closed = 1, 2
	state := map[string]int{}
	var stack, cycle []string
	var visit func(n string) bool
	visit = func(n string) bool {
		state[n] = open
		stack = append(stack, n)
		for _, m := range edges[n] {
			if state[m] == open {
				cycle = slices.Clone(stack[slices.Index(stack, m):])
				return true
			}
			if state[m] == 0 && visit(m) {
				return true
			}
		}
		stack, state[n] = stack[:len(stack)-1], closed
		return false
	}
	for _, n := range slices.Sorted(maps.Keys(edges)) {
		if state[n] == 0 && visit(n) {
			return cycle
		}
	}
	return nil
}

package translate

import (
	"net/netip"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// ServiceView is what of a service is to be told besides its spec.
type ServiceView struct {
	// Previous is the spec that a rollback goes back to, nil: there is none. Clients roll back only where they see one.
	Previous *skepv1.ServiceSpec
	Status   bool // count its tasks, as clients ask with status=true
	Defaults bool // fill in what is not set, as they ask with insertDefaults=true
}

// ServiceToDocker is a service in Docker's form.
func ServiceToDocker(s *skepv1.Service, view ServiceView) swarm.Service {
	out := swarm.Service{ID: s.GetMeta().GetId(), Meta: metaToDocker(s.GetMeta()), Spec: ServiceSpecToDocker(s.GetSpec())}
	if view.Previous != nil {
		previous := ServiceSpecToDocker(view.Previous)
		out.PreviousSpec = &previous
	}
	if view.Defaults {
		InsertDefaults(&out.Spec)
		if out.PreviousSpec != nil {
			InsertDefaults(out.PreviousSpec)
		}
	}
	out.Endpoint = swarm.Endpoint{Spec: endpointToDocker(s.GetSpec().GetEndpoint()), Ports: portsToDocker(s.GetEndpoint().GetPorts())}
	for _, v := range s.GetEndpoint().GetVirtualIps() {
		if p, ok := prefix(v.GetAddr()); ok { // one that is none would end a reader's whole list
			out.Endpoint.VirtualIPs = append(out.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: v.GetNetworkId(), Addr: p})
		}
	}
	out.UpdateStatus = updateStatusToDocker(s.GetUpdateStatus())
	if view.Status {
		st := s.GetStatus()
		out.ServiceStatus = &swarm.ServiceStatus{RunningTasks: st.GetRunning(), DesiredTasks: st.GetDesired(), CompletedTasks: st.GetCompleted()}
	}
	if spec.IsJob(s.GetSpec()) {
		out.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: s.GetJobIteration()}, LastExecution: timeOf(s.GetRun().GetStarted())}
		if s.GetRun().GetStarted() == nil { // its schedule has not come to a first time
			out.JobStatus.LastExecution = timeOf(s.GetMeta().GetCreatedAt())
		}
	}
	return out
}

// updateStates are those of a rollout for which Docker has another word, or none. A canary goes no further by itself, and says in
// its message who takes it further: paused.
var updateStates = map[string]swarm.UpdateState{"canary": swarm.UpdateStatePaused}

func updateState(state string) swarm.UpdateState {
	if s, ok := updateStates[state]; ok {
		return s
	}
	return swarm.UpdateState(state)
}

func updateStatusToDocker(u *skepv1.UpdateStatus) *swarm.UpdateStatus {
	if u.GetState() == "" {
		return nil
	}
	return &swarm.UpdateStatus{State: updateState(u.GetState()), StartedAt: timePointer(u.GetStartedAt()), CompletedAt: timePointer(u.GetCompletedAt()), Message: u.GetMessage()}
}

// prefix reads an address with or without its length: alone it is one address.
func prefix(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

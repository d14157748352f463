package translate

import (
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// Networks finds a network by its id or name, nil if there is none or nobody knows. A nil Networks knows none.
type Networks func(ref string) *skepv1.Network

// id is a network's id by what a client calls it. What is not known stays as it is: state looks for it, and says so if it
// is not there.
func (f Networks) id(ref string) string {
	if f == nil || spec.Predefined(ref) != "" {
		return ref
	}
	if id := f(ref).GetMeta().GetId(); id != "" {
		return id
	}
	return ref
}

// ServiceFromDocker is the spec of a new service. Fields nobody asked for stay unset: state fills in the defaults, and a name
// where there is none is the caller's to make. Warnings are for people: what was understood in another way than written.
func ServiceFromDocker(in swarm.ServiceSpec, networks Networks) (*skepv1.ServiceSpec, []string, error) {
	out := &skepv1.ServiceSpec{Name: in.Name, Labels: in.Labels}
	var err error
	if out.Task, err = taskFromDocker(in.TaskTemplate, networks); err != nil {
		return nil, nil, err
	}
	if out.Mode, err = modeFromDocker(in.Mode); err != nil {
		return nil, nil, err
	}
	if out.Update, err = updateConfigFromDocker("update", in.UpdateConfig); err != nil {
		return nil, nil, err
	}
	if out.Rollback, err = updateConfigFromDocker("rollback", in.RollbackConfig); err != nil {
		return nil, nil, err
	}
	if out.Endpoint, err = endpointFromDocker(in.EndpointSpec); err != nil {
		return nil, nil, err
	}
	if err := checkText(out.ProtoReflect(), ""); err != nil {
		return nil, nil, err
	}
	return out, warnings(out), nil
}

// ServiceSpecToDocker is a spec in Docker's form. Parts that Docker's own client always sends are there even if they are empty, so
// that no reader finds nil where Docker has none.
func ServiceSpecToDocker(s *skepv1.ServiceSpec) swarm.ServiceSpec {
	endpoint := endpointToDocker(s.GetEndpoint())
	return swarm.ServiceSpec{
		Annotations:  annotations(s.GetName(), s.GetLabels()),
		TaskTemplate: TaskSpecToDocker(s.GetTask()),
		Mode:         modeToDocker(s.GetMode()),
		UpdateConfig: updateConfigToDocker(s.GetUpdate()), RollbackConfig: updateConfigToDocker(s.GetRollback()),
		EndpointSpec: &endpoint,
	}
}

func modeFromDocker(m swarm.ServiceMode) (*skepv1.ServiceMode, error) {
	n := 0
	for _, given := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if given {
			n++
		}
	}
	switch {
	case n > 1:
		return nil, fault.Invalid("must specify only one service mode")
	case m.Global != nil:
		return &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_Global{Global: &skepv1.GlobalMode{}}}, nil
	case m.GlobalJob != nil:
		return &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_GlobalJob{GlobalJob: &skepv1.GlobalJobMode{}}}, nil
	case m.ReplicatedJob != nil:
		j := &skepv1.ReplicatedJobMode{MaxConcurrent: 1}
		if c := m.ReplicatedJob.MaxConcurrent; c != nil {
			j.MaxConcurrent = *c
		}
		j.TotalCompletions = j.MaxConcurrent
		if c := m.ReplicatedJob.TotalCompletions; c != nil {
			j.TotalCompletions = *c
		}
		return &skepv1.ServiceMode{Mode: &skepv1.ServiceMode_ReplicatedJob{ReplicatedJob: j}}, nil
	case m.Replicated != nil && m.Replicated.Replicas != nil:
		return spec.Replicated(*m.Replicated.Replicas), nil
	}
	return spec.Replicated(1), nil
}

func modeToDocker(m *skepv1.ServiceMode) (out swarm.ServiceMode) {
	switch m := m.GetMode().(type) {
	case *skepv1.ServiceMode_Global:
		out.Global = &swarm.GlobalService{}
	case *skepv1.ServiceMode_GlobalJob:
		out.GlobalJob = &swarm.GlobalJob{}
	case *skepv1.ServiceMode_ReplicatedJob:
		c, n := m.ReplicatedJob.GetMaxConcurrent(), m.ReplicatedJob.GetTotalCompletions()
		out.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: &c, TotalCompletions: &n}
	case *skepv1.ServiceMode_Replicated:
		n := m.Replicated.GetReplicas()
		out.Replicated = &swarm.ReplicatedService{Replicas: &n}
	default:
		n := uint64(1)
		out.Replicated = &swarm.ReplicatedService{Replicas: &n}
	}
	return out
}

var (
	failureActions = words[skepv1.FailureAction]{
		"": skepv1.FailureAction_FAILURE_ACTION_UNSPECIFIED, "pause": skepv1.FailureAction_FAILURE_ACTION_PAUSE,
		"continue": skepv1.FailureAction_FAILURE_ACTION_CONTINUE, "rollback": skepv1.FailureAction_FAILURE_ACTION_ROLLBACK,
	}
	updateOrders = words[skepv1.UpdateOrder]{
		"": skepv1.UpdateOrder_UPDATE_ORDER_UNSPECIFIED, "stop-first": skepv1.UpdateOrder_UPDATE_ORDER_STOP_FIRST,
		"start-first": skepv1.UpdateOrder_UPDATE_ORDER_START_FIRST,
	}
	endpointModes = words[skepv1.EndpointSpec_Mode]{
		"": skepv1.EndpointSpec_MODE_VIP, "vip": skepv1.EndpointSpec_MODE_VIP, "dnsrr": skepv1.EndpointSpec_MODE_DNSRR,
	}
	publishModes = words[skepv1.PublishMode]{
		"": skepv1.PublishMode_PUBLISH_MODE_INGRESS, "ingress": skepv1.PublishMode_PUBLISH_MODE_INGRESS,
		"host": skepv1.PublishMode_PUBLISH_MODE_HOST,
	}
)

// updateConfigFromDocker keeps nil apart from a configuration with parallelism 0: the one is one at a time, the other all at once.
func updateConfigFromDocker(which string, c *swarm.UpdateConfig) (*skepv1.UpdateConfig, error) {
	if c == nil {
		return nil, nil
	}
	action, ok := failureActions[string(c.FailureAction)]
	if !ok {
		return nil, fault.Invalid("unrecognized %s failure action %s: use pause, continue or rollback", which, c.FailureAction)
	}
	order, ok := updateOrders[string(c.Order)]
	if !ok {
		return nil, fault.Invalid("unrecognized %s order %s: use stop-first or start-first", which, c.Order)
	}
	return &skepv1.UpdateConfig{
		Parallelism: c.Parallelism, Delay: durationpb.New(c.Delay), Monitor: durationpb.New(c.Monitor), FailureAction: action,
		MaxFailureRatio: widen(c.MaxFailureRatio), Order: order,
	}, nil
}

func updateConfigToDocker(c *skepv1.UpdateConfig) *swarm.UpdateConfig {
	if c == nil {
		return nil
	}
	return &swarm.UpdateConfig{
		Parallelism: c.Parallelism, Delay: c.Delay.AsDuration(), Monitor: c.Monitor.AsDuration(),
		FailureAction:   swarm.FailureAction(failureActions.of(c.FailureAction)),
		MaxFailureRatio: float32(c.MaxFailureRatio), Order: swarm.UpdateOrder(updateOrders.of(c.Order)),
	}
}

// widen makes the number of 64 bits that was written: 0.1, and not 0.10000000149.
func widen(f float32) float64 {
	v, err := strconv.ParseFloat(strconv.FormatFloat(float64(f), 'g', -1, 32), 64)
	if err != nil {
		return float64(f)
	}
	return v
}

func endpointFromDocker(e *swarm.EndpointSpec) (*skepv1.EndpointSpec, error) {
	if e == nil {
		return nil, nil
	}
	mode, ok := endpointModes[string(e.Mode)]
	if !ok {
		return nil, fault.Invalid("invalid resolution mode: %q: use vip or dnsrr", e.Mode)
	}
	out := &skepv1.EndpointSpec{Mode: mode}
	for _, p := range e.Ports {
		publish, ok := publishModes[string(p.PublishMode)]
		if !ok {
			return nil, fault.Invalid("invalid publish mode value (%s): must be either 'ingress' or 'host'", p.PublishMode)
		}
		protocol := strings.ToLower(string(p.Protocol))
		if protocol == "" {
			protocol = "tcp"
		}
		out.Ports = append(out.Ports, &skepv1.PortConfig{
			Name: p.Name, Protocol: protocol, TargetPort: p.TargetPort, PublishedPort: p.PublishedPort, PublishMode: publish,
		})
	}
	return out, nil
}

func endpointToDocker(e *skepv1.EndpointSpec) swarm.EndpointSpec {
	mode := swarm.ResolutionModeVIP
	if e.GetMode() == skepv1.EndpointSpec_MODE_DNSRR {
		mode = swarm.ResolutionModeDNSRR
	}
	return swarm.EndpointSpec{Mode: mode, Ports: portsToDocker(e.GetPorts())}
}

func portsToDocker(ports []*skepv1.PortConfig) []swarm.PortConfig {
	var out []swarm.PortConfig
	for _, p := range ports {
		mode, protocol := swarm.PortConfigPublishModeIngress, strings.ToLower(p.GetProtocol())
		if p.GetPublishMode() == skepv1.PublishMode_PUBLISH_MODE_HOST {
			mode = swarm.PortConfigPublishModeHost
		}
		if protocol == "" {
			protocol = "tcp"
		}
		out = append(out, swarm.PortConfig{
			Name: p.GetName(), Protocol: network.IPProtocol(protocol), TargetPort: p.GetTargetPort(),
			PublishedPort: p.GetPublishedPort(), PublishMode: mode,
		})
	}
	return out
}

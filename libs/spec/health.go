package spec

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// minHealth is the shortest duration a check may have; 0 inherits the image's or the default.
const minHealth = time.Millisecond

func validateHealth(c *skepv1.ContainerSpec) error {
	h := c.Health
	if h == nil {
		return nil
	}
	if err := validateTimes("HealthConfig", h); err != nil {
		return err
	}
	if len(h.Test) > 0 && h.Test[0] == "NONE" {
		if len(h.Test) > 1 || h.Interval != nil || h.Timeout != nil || h.StartPeriod != nil || h.StartInterval != nil || h.Retries != 0 || asksNetwork(h) {
			return fault.Invalid("--no-healthcheck conflicts with --health-* options")
		}
		return nil
	}
	return validateProbe("health", h)
}

func validateReady(c *skepv1.ContainerSpec) error {
	r := c.Ready
	if r == nil {
		return nil
	}
	if err := validateTimes("the readiness check", r); err != nil {
		return err
	}
	switch {
	case r.StartPeriod.AsDuration() != 0, r.StartInterval.AsDuration() != 0:
		return fault.Invalid("ContainerSpec: a readiness check has no start period: a task is not ready until its first success, however long that takes")
	case len(r.Test) == 0 && !asksNetwork(r):
		return fault.Invalid("ContainerSpec: the readiness check does not say what to ask: give it a command, http, tcp or grpc")
	case len(r.Test) > 0 && r.Test[0] == "NONE":
		return fault.Invalid("ContainerSpec: a readiness check cannot be NONE: images have none to switch off, leave it out")
	}
	return validateProbe("readiness", r)
}

func validateTimes(where string, h *skepv1.HealthConfig) error {
	for _, d := range []struct {
		name string
		val  *durationpb.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if v := d.val.AsDuration(); d.val != nil && v != 0 && v < minHealth {
			return fault.Invalid("ContainerSpec: %s in %s cannot be less than %s", d.name, where, minHealth)
		}
	}
	if h.Retries < 0 {
		return fault.Invalid("ContainerSpec: Retries in %s cannot be negative", where)
	}
	return nil
}

// asksNetwork: it is made over the task's network, not by a command.
func asksNetwork(h *skepv1.HealthConfig) bool {
	return h.Http != nil || h.TcpPort != 0 || h.Grpc != nil
}

// validateProbe looks at what is asked; kind is health or readiness.
func validateProbe(kind string, h *skepv1.HealthConfig) error {
	var ways []string
	for _, w := range []struct {
		name string
		set  bool
	}{{"a command", len(h.Test) > 0}, {"http", h.Http != nil}, {"tcp", h.TcpPort != 0}, {"grpc", h.Grpc != nil}} {
		if w.set {
			ways = append(ways, w.name)
		}
	}
	if len(ways) > 1 {
		return fault.Invalid("ContainerSpec: the %s check asks in %d ways (%s): use one of them", kind, len(ways), strings.Join(ways, ", "))
	}
	switch {
	case h.Http != nil:
		if err := validateProbePort(kind, "http", h.Http.Port); err != nil {
			return err
		}
		if !strings.HasPrefix(h.Http.Path, "/") {
			return fault.Invalid("ContainerSpec: the path %q of the %s check does not begin with \"/\"", h.Http.Path, kind)
		}
		if strings.ContainsFunc(h.Http.Path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return fault.Invalid("ContainerSpec: the path %q of the %s check holds a space or a control character: write it as %%20", h.Http.Path, kind)
		}
	case h.TcpPort != 0:
		return validateProbePort(kind, "tcp", h.TcpPort)
	case h.Grpc != nil:
		return validateProbePort(kind, "grpc", h.Grpc.Port)
	case len(h.Test) > 0:
		return validateTest(kind, h.Test)
	}
	return nil
}

func validateProbePort(kind, way string, port uint32) error {
	if port == 0 || port > 65535 {
		return fault.Invalid("ContainerSpec: the %s check asks %s port %d: use 1 to 65535", kind, way, port)
	}
	return nil
}

func validateTest(kind string, test []string) error {
	switch test[0] {
	case "CMD":
		if len(test) < 2 || test[1] == "" {
			return fault.Invalid("ContainerSpec: the %s check CMD has no command", kind)
		}
	case "CMD-SHELL":
		if len(test) != 2 || test[1] == "" {
			return fault.Invalid("ContainerSpec: the %s check CMD-SHELL takes exactly one command line", kind)
		}
	default:
		return fault.Invalid("ContainerSpec: %s check begins with %q: use NONE, CMD or CMD-SHELL", kind, test[0])
	}
	return nil
}

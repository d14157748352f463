package probe

import (
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// Docker's defaults of a health check.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
)

// The defaults of a readiness check: it turns traffic away and back, so it looks more often; one failure is not enough,
// lest one slow answer of each task takes all of a busy service's tasks out of service together.
const (
	readyInterval = 5 * time.Second
	readyTimeout  = 5 * time.Second
	readyRetries  = 2
)

// The first looks at a task that has just begun are quick, since most programs are up within moments, and come twice as
// far apart each time. Failures among them do not count.
const (
	quickNetwork = 100 * time.Millisecond
	quickCommand = 500 * time.Millisecond
)

// resumeWithin spreads the first probes of all the tasks that an agent takes over at once.
const resumeWithin = 5 * time.Second

// Check is a check with every value settled. Exactly one of Command, HTTP, TCP and GRPC is set.
type Check struct {
	Command []string
	HTTP    *skepv1.HTTPCheck
	TCP     uint32
	GRPC    *skepv1.GRPCCheck

	Interval, Timeout          time.Duration
	StartPeriod, StartInterval time.Duration
	Retries                    int

	paced bool // the spec or image says how often to look at the start: no quicker looks
}

// HealthCheck is the health check of a task, nil for none. What the spec leaves unset is the image's, then Docker's
// default.
func HealthCheck(spec, image *skepv1.HealthConfig) *Check {
	from := spec
	if !chooses(spec) {
		from = image
	}
	c := newCheck(from)
	if c == nil {
		return nil
	}
	c.Interval = first(spec.GetInterval(), image.GetInterval(), healthInterval)
	c.Timeout = first(spec.GetTimeout(), image.GetTimeout(), healthTimeout)
	c.StartPeriod = first(spec.GetStartPeriod(), image.GetStartPeriod(), 0)
	c.StartInterval = first(spec.GetStartInterval(), image.GetStartInterval(), healthStartInterval)
	c.paced = first(spec.GetStartInterval(), image.GetStartInterval(), 0) > 0
	if c.Retries = int(spec.GetRetries()); c.Retries <= 0 {
		c.Retries = int(image.GetRetries())
	}
	if c.Retries <= 0 {
		c.Retries = healthRetries
	}
	return c
}

// ReadyCheck is the readiness check of a task, nil for none. Images have none.
func ReadyCheck(spec *skepv1.HealthConfig) *Check {
	c := newCheck(spec)
	if c == nil {
		return nil
	}
	c.Interval = first(spec.GetInterval(), nil, readyInterval)
	c.Timeout = first(spec.GetTimeout(), nil, readyTimeout)
	c.StartInterval = c.Interval
	if c.Retries = int(spec.GetRetries()); c.Retries <= 0 {
		c.Retries = readyRetries
	}
	return c
}

// chooses: it says what to probe, or that nothing is to be.
func chooses(h *skepv1.HealthConfig) bool {
	return len(h.GetTest()) > 0 || h.GetHttp() != nil || h.GetTcpPort() != 0 || h.GetGrpc() != nil
}

func newCheck(h *skepv1.HealthConfig) *Check {
	switch {
	case h.GetHttp() != nil:
		return &Check{HTTP: h.Http}
	case h.GetTcpPort() != 0:
		return &Check{TCP: h.TcpPort}
	case h.GetGrpc() != nil:
		return &Check{GRPC: h.Grpc}
	case len(h.GetTest()) < 2:
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return &Check{Command: h.Test[1:]}
	case "CMD-SHELL":
		return &Check{Command: []string{"/bin/sh", "-c", h.Test[1]}}
	}
	return nil // NONE, or a word of an image that nobody knows
}

func first(a, b *durationpb.Duration, or time.Duration) time.Duration {
	for _, d := range []*durationpb.Duration{a, b} {
		if v := d.AsDuration(); d != nil && v > 0 {
			return v
		}
	}
	return or
}

// grace is the age up to which failures of a task that has not passed yet do not count: the start period, and the first
// interval, within which Docker would not have looked.
func (c *Check) grace() time.Duration { return max(c.StartPeriod, c.Interval) }

// first is the pause before the first probe, and never the same for tasks that begin together.
func (c *Check) first(v Verdict) time.Duration {
	d := c.quick(0)
	if v != Unknown {
		d = min(c.Interval, resumeWithin)
		return jitter(d/50) + spread(d)
	}
	return d/2 + spread(d/2)
}

// pause is how long to wait after a probe of a task of that age.
func (c *Check) pause(v Verdict, age time.Duration, tries int) time.Duration {
	if v != Unknown || age >= c.grace() {
		return c.Interval
	}
	return min(c.quick(tries), c.grace()-age)
}

// quick is the pause after so many looks at a task that has just begun.
func (c *Check) quick(tries int) time.Duration {
	most := min(c.Interval, c.StartInterval)
	if c.paced {
		return most
	}
	d := quickNetwork
	if c.Command != nil {
		d = quickCommand
	}
	return min(d<<min(tries, 16), most)
}

// spread is a random part of d.
func spread(d time.Duration) time.Duration { return rand.N(d + 1) }

package specflag

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// checkFlags are the flags of one check of the tasks: --health-* or --ready-*.
type checkFlags struct {
	prefix                     string
	cmd                        *scalar[string]
	http                       *scalar[*skepv1.HTTPCheck]
	tcp                        *scalar[uint32]
	grpc                       *scalar[*skepv1.GRPCCheck]
	interval, timeout          *scalar[time.Duration]
	startPeriod, startInterval *scalar[time.Duration] // nil where they mean nothing
	retries                    *scalar[int64]
}

func (f *Flags) registerHealth() {
	f.healthCheck = f.registerCheck("health", "a task is healthy")
	f.healthCheck.startPeriod = addScalar(f, "health-start-period", "", "duration", "Time to start in which failures do not count", parseHealthDuration("health-start-period"))
	f.healthCheck.startInterval = addScalar(f, "health-start-interval", "", "duration", "Time between checks during the start period", parseHealthDuration("health-start-interval"))
	f.healthCheck.retries = addScalar(f, "health-retries", "", "int", "Failures in a row that make a task unhealthy", parseBounded(0, 1<<31-1))
	f.healthBudget = addScalar(f, "health-budget", "", "uint", "Most tasks to be down at once because they were replaced for their health (default a quarter, at least 1)", parseBudget)
	f.noHealth = addBool(f, "no-healthcheck", "", "Switch off the image's health check")
	f.readyCheck = f.registerCheck("ready", "a task gets traffic")
	f.readyCheck.retries = addScalar(f, "ready-retries", "", "int", "Failures in a row that take a task out of traffic (default 2)", parseBounded(0, 1<<31-1))
	if f.update {
		f.noReady = addBool(f, "no-readycheck", "", "Remove the readiness check")
	}
}

func (f *Flags) registerCheck(prefix, what string) checkFlags {
	c := checkFlags{prefix: prefix}
	name := func(s string) string { return prefix + "-" + s }
	c.cmd = addScalar(f, name("cmd"), "", "string", "Command that tells whether "+what, text)
	c.http = addScalar(f, name("http"), "", "port/path", "HTTP request that tells whether "+what+": [:]port/path", parseHTTPCheck(name("http")))
	c.tcp = addScalar(f, name("tcp"), "", "port", "TCP port that tells whether "+what, parseCheckPort(name("tcp")))
	c.grpc = addScalar(f, name("grpc"), "", "port", "gRPC health service that tells whether "+what+": port[/service]", parseGRPCCheck(name("grpc")))
	c.interval = addScalar(f, name("interval"), "", "duration", "Time between checks", parseHealthDuration(name("interval")))
	c.timeout = addScalar(f, name("timeout"), "", "duration", "Time a check may take", parseHealthDuration(name("timeout")))
	if prefix == "ready" {
		for _, s := range []*string{&f.fs.Lookup(name("interval")).Usage, &f.fs.Lookup(name("timeout")).Usage} {
			*s += " of readiness (default 5s)"
		}
	}
	return c
}

// chooses: it says what to ask.
func (c *checkFlags) chooses() bool { return c.cmd.set || c.http.set || c.tcp.set || c.grpc.set }

func (c *checkFlags) touched() bool {
	return c.chooses() || c.interval.set || c.timeout.set || c.retries.set ||
		c.startPeriod != nil && c.startPeriod.set || c.startInterval != nil && c.startInterval.set
}

// apply returns the check that h becomes.
func (c *checkFlags) apply(h *skepv1.HealthConfig) (*skepv1.HealthConfig, error) {
	if h == nil {
		h = &skepv1.HealthConfig{}
	}
	if len(h.Test) > 0 && h.Test[0] == "NONE" {
		h.Test = nil
	}
	if c.chooses() {
		var ways []string
		for _, w := range []struct {
			name string
			set  bool
		}{{"cmd", c.cmd.set}, {"http", c.http.set}, {"tcp", c.tcp.set}, {"grpc", c.grpc.set}} {
			if w.set {
				ways = append(ways, "--"+c.prefix+"-"+w.name)
			}
		}
		if len(ways) > 1 {
			return nil, invalidf("%s conflict: use one of them", strings.Join(ways, " and "))
		}
		h.Test, h.Http, h.TcpPort, h.Grpc = nil, nil, 0, nil // another way to ask replaces the one before
	}
	switch {
	case c.cmd.set && c.cmd.val != "":
		h.Test = []string{"CMD-SHELL", c.cmd.val}
	case c.http.set:
		h.Http = c.http.val
	case c.tcp.set:
		h.TcpPort = c.tcp.val
	case c.grpc.set:
		h.Grpc = c.grpc.val
	}
	for _, x := range []struct {
		flag *scalar[time.Duration]
		to   **durationpb.Duration
	}{{c.interval, &h.Interval}, {c.timeout, &h.Timeout}, {c.startPeriod, &h.StartPeriod}, {c.startInterval, &h.StartInterval}} {
		if x.flag != nil && x.flag.set {
			*x.to = durationpb.New(x.flag.val)
		}
	}
	if c.retries.set {
		h.Retries = int32(c.retries.val)
	}
	return h, nil
}

func (f *Flags) checks(c *skepv1.ContainerSpec) error {
	if err := f.health(c); err != nil {
		return err
	}
	return f.ready(c)
}

func (f *Flags) health(c *skepv1.ContainerSpec) (err error) {
	switch {
	case f.noHealth.set && f.noHealth.val:
		if f.healthCheck.touched() {
			return invalidf("--no-healthcheck conflicts with --health-* options")
		}
		c.Health = &skepv1.HealthConfig{Test: []string{"NONE"}}
	case f.healthCheck.touched():
		c.Health, err = f.healthCheck.apply(c.Health)
	case f.noHealth.set && c.Health != nil && slices.Equal(c.Health.Test, []string{"NONE"}):
		c.Health.Test = nil // --no-healthcheck=false: the image's check again
	}
	return err
}

func (f *Flags) ready(c *skepv1.ContainerSpec) (err error) {
	switch {
	case f.noReady != nil && f.noReady.set && f.noReady.val:
		if f.readyCheck.touched() {
			return invalidf("--no-readycheck conflicts with --ready-* options")
		}
		c.Ready = nil
	case f.readyCheck.touched():
		if c.Ready == nil && !f.readyCheck.chooses() {
			return invalidf("--ready-* options say how often to ask and not what: add --ready-cmd, --ready-http, --ready-tcp or --ready-grpc")
		}
		c.Ready, err = f.readyCheck.apply(c.Ready)
	}
	return err
}

// parseHTTPCheck reads [:]port/path; without a path, "/".
func parseHTTPCheck(flag string) func(string) (*skepv1.HTTPCheck, error) {
	return func(s string) (*skepv1.HTTPCheck, error) {
		at := strings.TrimPrefix(s, ":")
		path := "/"
		if i := strings.IndexByte(at, '/'); i >= 0 {
			at, path = at[:i], at[i:]
		}
		port, err := checkPort(flag, at, "[:]port/path, as in :8080/healthz")
		if err != nil {
			return nil, err
		}
		return &skepv1.HTTPCheck{Port: port, Path: path}, nil
	}
}

func parseCheckPort(flag string) func(string) (uint32, error) {
	return func(s string) (uint32, error) {
		return checkPort(flag, strings.TrimPrefix(s, ":"), "a port, as in 5432")
	}
}

// parseGRPCCheck reads [:]port[/service].
func parseGRPCCheck(flag string) func(string) (*skepv1.GRPCCheck, error) {
	return func(s string) (*skepv1.GRPCCheck, error) {
		at, service, _ := strings.Cut(strings.TrimPrefix(s, ":"), "/")
		port, err := checkPort(flag, at, "port[/service], as in 9000/shop.v1.Cart")
		if err != nil {
			return nil, err
		}
		return &skepv1.GRPCCheck{Port: port, Service: service}, nil
	}
}

func checkPort(flag, s, form string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, invalidf("invalid %s: %q is not a port number: use %s", flag, s, form)
	}
	if n == 0 || n > 65535 {
		return 0, invalidf("invalid %s: port %d is out of range: use 1 to 65535", flag, n)
	}
	return uint32(n), nil
}

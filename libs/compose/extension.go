package compose

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// extensionKey holds what a service of skep has and compose does not. Other programs pass over it.
const extensionKey = "x-skep"

// extension is x-skep of a service.
type extension struct {
	HealthBudget  uint64        `yaml:"health_budget"`
	OnPartition   string        `yaml:"on_partition"` // keep, stop
	VolumePin     bool          `yaml:"volume_pin"`
	DNSStarting   bool          `yaml:"dns_starting"`
	MaxConcurrent uint64        `yaml:"max_concurrent"` // of a job
	Schedule      *scheduleSpec `yaml:"schedule"`       // of a job
	Ready         *probe        `yaml:"ready"`
	Health        *probe        `yaml:"health"` // instead of healthcheck.test; its times are healthcheck's

	UpdateTimeout      string `yaml:"update_timeout"`
	RollbackTimeout    string `yaml:"rollback_timeout"`
	RestartMaxDelay    string `yaml:"restart_max_delay"`
	SecretUpdateSignal string `yaml:"secret_update_signal"`
	ConfigUpdateSignal string `yaml:"config_update_signal"`
}

type scheduleSpec struct {
	Cron          string  `yaml:"cron"`
	TimeZone      string  `yaml:"time_zone"`
	Concurrency   string  `yaml:"concurrency"` // allow, forbid, replace
	KeepCompleted *uint32 `yaml:"keep_completed"`
	KeepFailed    *uint32 `yaml:"keep_failed"`
	CatchUp       string  `yaml:"catch_up"`
}

type probe struct {
	Test     []string `yaml:"test"`
	HTTP     *httpAt  `yaml:"http"`
	TCP      uint32   `yaml:"tcp"`
	GRPC     *grpcAt  `yaml:"grpc"`
	Interval string   `yaml:"interval"`
	Timeout  string   `yaml:"timeout"`
	Retries  int32    `yaml:"retries"`
}

type httpAt struct {
	Port uint32 `yaml:"port"`
	Path string `yaml:"path"`
}

type grpcAt struct {
	Port    uint32 `yaml:"port"`
	Service string `yaml:"service"`
}

// mountExtension is x-skep of a mount of type bind.
type mountExtension struct {
	CreateSource bool `yaml:"create_source"`
	Wait         bool `yaml:"wait"` // until something is mounted at the source
}

// volumeExtension is x-skep of a volume at the top.
type volumeExtension struct {
	Sharing string `yaml:"sharing"` // none, onewriter, all
}

var extensionField = regexp.MustCompile(`field (\S+) not found`)

// readExtension decodes x-skep into out, strictly.
func (l *loading) readExtension(path []string, ext types.Extensions, out any) {
	v, ok := ext[extensionKey]
	if !ok {
		return
	}
	path = with(path, extensionKey)
	data, err := yaml.Marshal(v)
	if err == nil {
		dec := yaml.NewDecoder(bytes.NewReader(data))
		dec.KnownFields(true)
		if err = dec.Decode(out); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err == nil {
		return
	}
	if m := extensionField.FindStringSubmatch(err.Error()); m != nil {
		l.wrongAt(with(path, m[1]), "unknown key: docs/compose.md has those of x-skep")
		return
	}
	l.wrongAt(path, "a value has the wrong type: docs/compose.md has the keys of x-skep")
}

func (s *service) extension() (out extension) {
	s.readExtension(s.path, s.in.Extensions, &out)
	return out
}

func (s *service) mountExtension(path []string, ext types.Extensions) (out mountExtension) {
	s.readExtension(path, ext, &out)
	return out
}

func (l *loading) volumeExtension(path []string, ext types.Extensions) (out volumeExtension) {
	l.readExtension(path, ext, &out)
	switch out.Sharing {
	case "", "none", "onewriter", "all":
	default:
		l.wrongAt(append(path, extensionKey, "sharing"), "unknown word: use none, onewriter or all")
	}
	return out
}

// extend puts x-skep into the service, over what compose's attributes said.
func (s *service) extend() {
	x, out := s.ext, s.out
	at := func(key string) []string { return s.at(extensionKey, key) }
	out.HealthBudget = x.HealthBudget
	if x.DNSStarting {
		if out.Endpoint == nil {
			out.Endpoint = &skepv1.EndpointSpec{}
		}
		out.Endpoint.DnsStarting = true
	}
	out.Task.Placement.VolumePin = x.VolumePin
	out.Task.Container.SecretUpdateSignal, out.Task.Container.ConfigUpdateSignal = x.SecretUpdateSignal, x.ConfigUpdateSignal
	switch x.OnPartition {
	case "", "keep":
	case "stop":
		out.OnPartition = skepv1.PartitionPolicy_PARTITION_POLICY_STOP
	default:
		s.wrongAt(at("on_partition"), "unknown word: use keep or stop")
	}
	if x.MaxConcurrent > 0 {
		if j := out.Mode.GetReplicatedJob(); j != nil {
			j.MaxConcurrent = x.MaxConcurrent
		} else {
			s.wrongAt(at("max_concurrent"), "it is for deploy.mode replicated-job")
		}
	}
	if x.Schedule != nil {
		out.Schedule = s.schedule(at("schedule"), x.Schedule)
		if !spec.IsJob(out) {
			s.wrongAt(at("schedule"), "it is for jobs: write deploy.mode replicated-job or global-job")
		}
	}
	if d := s.time(at("update_timeout"), x.UpdateTimeout); d != nil {
		if out.Update == nil {
			out.Update = &skepv1.UpdateConfig{Parallelism: 1}
		}
		out.Update.Timeout = d
	}
	if d := s.time(at("rollback_timeout"), x.RollbackTimeout); d != nil {
		if out.Rollback == nil {
			out.Rollback = &skepv1.UpdateConfig{Parallelism: 1}
		}
		out.Rollback.Timeout = d
	}
	if d := s.time(at("restart_max_delay"), x.RestartMaxDelay); d != nil {
		if out.Task.Restart == nil {
			out.Task.Restart = &skepv1.RestartPolicy{}
		}
		out.Task.Restart.MaxDelay = d
	}
	if x.Ready != nil {
		out.Task.Container.Ready = s.probe(at("ready"), x.Ready, &skepv1.HealthConfig{})
	}
	if x.Health != nil {
		h := out.Task.Container.Health
		if h == nil {
			h = &skepv1.HealthConfig{}
		}
		if len(h.Test) > 0 || len(x.Health.Test) > 0 {
			s.wrongAt(at("health"), "a command is written in healthcheck.test, and there is one way to ask: remove one of them")
		}
		out.Task.Container.Health = s.probe(at("health"), x.Health, h)
	}
}

func (s *service) probe(path []string, p *probe, h *skepv1.HealthConfig) *skepv1.HealthConfig {
	h.Test, h.TcpPort = p.Test, p.TCP
	if p.HTTP != nil {
		h.Http = &skepv1.HTTPCheck{Port: p.HTTP.Port, Path: p.HTTP.Path}
		if h.Http.Path == "" {
			h.Http.Path = "/"
		}
	}
	if p.GRPC != nil {
		h.Grpc = &skepv1.GRPCCheck{Port: p.GRPC.Port, Service: p.GRPC.Service}
	}
	if d := s.time(append(path, "interval"), p.Interval); d != nil {
		h.Interval = d
	}
	if d := s.time(append(path, "timeout"), p.Timeout); d != nil {
		h.Timeout = d
	}
	if p.Retries != 0 {
		h.Retries = p.Retries
	}
	return h
}

func (s *service) schedule(path []string, in *scheduleSpec) *skepv1.Schedule {
	out := &skepv1.Schedule{Cron: in.Cron, TimeZone: in.TimeZone, KeepCompleted: in.KeepCompleted, KeepFailed: in.KeepFailed,
		CatchUp: s.time(append(path, "catch_up"), in.CatchUp)}
	words := map[string]skepv1.Concurrency{"": 0, "allow": skepv1.Concurrency_CONCURRENCY_ALLOW,
		"forbid": skepv1.Concurrency_CONCURRENCY_FORBID, "replace": skepv1.Concurrency_CONCURRENCY_REPLACE}
	var ok bool
	if out.Concurrency, ok = words[in.Concurrency]; !ok {
		s.wrongAt(append(path, "concurrency"), "unknown word: use %s", strings.Join(slices.Sorted(maps.Keys(words))[1:], ", "))
	}
	return out
}

// time is a duration with its unit, nil when there is none.
func (s *service) time(path []string, text string) *durationpb.Duration {
	if text == "" {
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		s.wrongAt(path, "it is no duration: write a number with its unit, such as 10s")
		return nil
	}
	return durationpb.New(d)
}

package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"skep.dev/libs/spec"
	"skep.dev/libs/typo"
	skepv1 "skep.dev/proto/skep/v1"
)

func goDuration(d types.Duration) time.Duration { return time.Duration(d) }

// container reads what the process is started with.
func (s *service) container() {
	c, in := s.out.Task.Container, s.in
	c.Command, c.Args = in.Entrypoint, in.Command
	c.Hostname, c.Dir, c.User, c.Groups = in.Hostname, in.WorkingDir, in.User, in.GroupAdd
	c.Init, c.Tty, c.OpenStdin, c.ReadOnly = in.Init, in.Tty, in.StdinOpen, in.ReadOnly
	c.StopSignal, c.StopGracePeriod = in.StopSignal, duration(in.StopGracePeriod)
	c.OomScoreAdj, c.Isolation = in.OomScoreAdj, in.Isolation
	c.Labels = s.labels(s.containerLabels())
	if len(in.Sysctls) > 0 {
		c.Sysctls = maps.Clone(map[string]string(in.Sysctls))
	}
	if len(in.DNS)+len(in.DNSSearch)+len(in.DNSOpts) > 0 {
		c.Dns = &skepv1.DNSConfig{Nameservers: in.DNS, Search: in.DNSSearch, Options: in.DNSOpts}
	}
	for _, name := range slices.Sorted(maps.Keys(in.ExtraHosts)) {
		for _, ip := range in.ExtraHosts[name] {
			if ip == "host-gateway" {
				s.unsupported(s.at("extra_hosts"), "host-gateway has no address in a cluster: write the address of the host that is meant")
				continue
			}
			c.Hosts = append(c.Hosts, ip+" "+name)
		}
	}
	if in.Logging != nil {
		s.out.Task.LogDriver = &skepv1.LogDriver{Name: in.Logging.Driver, Options: maps.Clone(map[string]string(in.Logging.Options))}
		if in.Logging.Driver == "" && len(in.Logging.Options) == 0 {
			s.out.Task.LogDriver = nil
		}
	}
}

// containerLabels are labels, and those of label_file below them.
func (s *service) containerLabels() map[string]string {
	out := map[string]string{}
	for i, path := range s.in.LabelFiles {
		data, err := readFile(path, maxFile)
		if err != nil {
			s.wrongAt(s.at("label_file", itoa(i)), "cannot read %s: %v", s.short(path), err)
			continue
		}
		for _, kv := range s.rawEnv(s.short(path), data) {
			out[kv[0]] = kv[1]
		}
	}
	maps.Copy(out, s.in.Labels)
	return out
}

// environment puts env_file below environment. A name without a value has the shell's; without one there it stays a name,
// which takes the variable of the image away.
func (s *service) environment() {
	env := map[string]string{}
	bare := map[string]bool{}
	for i, f := range s.in.EnvFiles {
		path := s.at("env_file", itoa(i))
		if f.Format != "" && f.Format != "raw" {
			s.wrongAt(path, "unknown format: leave it out, env files are read as they stand")
			continue
		}
		data, err := readFile(f.Path, maxFile)
		switch {
		case err != nil && !bool(f.Required) && s.optionalEnvFile(i):
			s.noteAt(path, "%s is not read: %v", s.short(f.Path), err)
			continue
		case err != nil:
			s.wrongAt(path, "cannot read the env file %s: %v", s.short(f.Path), err)
			continue
		}
		for _, kv := range s.rawEnv(s.short(f.Path), data) {
			env[kv[0]] = kv[1]
		}
	}
	for k, v := range s.in.Environment {
		if k == "" {
			s.wrongAt(s.at("environment"), "a variable has no name: write NAME=value")
			continue
		}
		switch shell, ok := s.env[k]; {
		case v != nil:
			env[k] = *v
		case ok:
			env[k] = shell
		default:
			delete(env, k)
			bare[k] = true
			s.noteAt(s.at("environment", k), "it has no value here and none in the shell: the container has no such variable, even if the image sets it")
		}
	}
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	out = slices.AppendSeq(out, maps.Keys(bare))
	slices.Sort(out)
	s.out.Task.Container.Env = out
}

// optionalEnvFile: the model says required: false, and not nothing.
func (s *service) optionalEnvFile(i int) bool {
	list, _ := s.raw["env_file"].([]any)
	if i >= len(list) {
		return false
	}
	m, _ := list[i].(map[string]any)
	required, ok := m["required"].(bool)
	return ok && !required
}

func (s *service) health() {
	h := s.in.HealthCheck
	if h == nil {
		return
	}
	path := s.at("healthcheck")
	out := &skepv1.HealthConfig{Interval: duration(h.Interval), Timeout: duration(h.Timeout), StartPeriod: duration(h.StartPeriod), StartInterval: duration(h.StartInterval)}
	if h.Retries != nil {
		if *h.Retries > 1<<30 {
			s.wrongAt(append(path, "retries"), "it is too large")
			return
		}
		out.Retries = int32(*h.Retries)
	}
	test := slices.Clone([]string(h.Test))
	if text, ok := rawAt(s.raw, "healthcheck", "test").(string); ok && strings.TrimSpace(text) == "NONE" {
		s.noteAt(append(path, "test"), "read as disable: true; written as text it would be a command of that name")
		test = []string{"NONE"}
	}
	switch {
	// A later file may take away the check of an earlier one.
	case h.Disable && len(test) > 0 && test[0] != "NONE" && !s.later(s.at("healthcheck", "disable"), s.at("healthcheck", "test")):
		s.wrongAt(append(path, "disable"), "the check is disabled and has a test: remove one of them")
		return
	case h.Disable || len(test) > 0 && test[0] == "NONE":
		s.out.Task.Container.Health = &skepv1.HealthConfig{Test: []string{"NONE"}}
		return
	case len(test) > 0 && test[0] != "CMD" && test[0] != "CMD-SHELL":
		s.wrongAt(append(path, "test"), `a list begins with CMD, CMD-SHELL or NONE: write ["CMD", …]`)
		return
	}
	out.Test = test
	s.out.Task.Container.Health = out
}

// rights reads what the process may do.
func (s *service) rights() {
	c, in := s.out.Task.Container, s.in
	c.CapabilityAdd, c.CapabilityDrop = capabilities(in.CapAdd), capabilities(in.CapDrop)
	for _, name := range slices.Sorted(maps.Keys(in.Ulimits)) {
		u := in.Ulimits[name]
		if u == nil {
			continue
		}
		one := &skepv1.Ulimit{Name: name, Soft: int64(u.Soft), Hard: int64(u.Hard)}
		if m, ok := rawAt(s.raw, "ulimits", name).(map[string]any); !ok {
			one.Soft, one.Hard = int64(u.Single), int64(u.Single)
		} else if m["soft"] == nil || m["hard"] == nil {
			s.wrongAt(s.at("ulimits", name), "it needs both soft and hard")
			continue
		}
		c.Ulimits = append(c.Ulimits, one)
	}
	for i, o := range in.SecurityOpt {
		s.securityOption(s.at("security_opt", itoa(i)), o)
	}
}

func (s *service) securityOption(path []string, option string) {
	c := s.out.Task.Container
	if c.Privileges == nil {
		c.Privileges = &skepv1.Privileges{}
	}
	i := strings.IndexAny(option, "=:")
	key, value := option, ""
	if i >= 0 {
		key, value = option[:i], option[i+1:]
	}
	switch {
	case key == "no-new-privileges" && (value == "" || value == "true"):
		c.Privileges.NoNewPrivileges = true
	case key == "no-new-privileges" && value == "false":
	case key == "seccomp" && value == "unconfined":
		c.Privileges.SeccompMode = "unconfined"
	case key == "seccomp" && value != "":
		file, err := abs(s.dir, value)
		var data []byte
		if err == nil {
			data, err = readFile(file, maxFile)
		}
		if err != nil {
			s.wrongAt(path, "cannot read the seccomp profile %s: %v", value, err)
			return
		}
		c.Privileges.SeccompMode, c.Privileges.SeccompProfile = "custom", data
	case key == "apparmor" && value == "unconfined":
		c.Privileges.ApparmorMode = "disabled"
	default:
		s.unsupported(path, "of security options there are no-new-privileges, seccomp=unconfined or a profile's file, and apparmor=unconfined")
	}
}

func capabilities(names []string) (out []string) {
	for _, n := range names {
		n = strings.ToUpper(n)
		if n != "ALL" && !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// references reads the secrets and configs of the service.
func (s *service) references() {
	c := s.out.Task.Container
	for i, r := range s.in.Secrets {
		if f := s.reference("secrets", i, types.FileReferenceConfig(r)); f != nil {
			c.Secrets = append(c.Secrets, f)
		}
	}
	for i, r := range s.in.Configs {
		if f := s.reference("configs", i, types.FileReferenceConfig(r)); f != nil {
			c.Configs = append(c.Configs, f)
		}
	}
	byTarget := func(a, b *skepv1.FileReference) int {
		return strings.Compare(a.Name+"\x00"+a.Target, b.Name+"\x00"+b.Target)
	}
	slices.SortFunc(c.Secrets, byTarget)
	slices.SortFunc(c.Configs, byTarget)
}

func (s *service) reference(key string, i int, r types.FileReferenceConfig) *skepv1.FileReference {
	kind := kinds[key]
	path := s.at(key, itoa(i))
	f := s.files[kind][r.Source]
	if f == nil {
		s.wrongAt(path, "there is no %s %s at the top of the files%s", spec.KindWord(kind), r.Source, nearest(r.Source, slices.Collect(maps.Keys(s.files[kind]))))
		return nil
	}
	f.used = true
	out := &skepv1.FileReference{Name: f.name, Target: r.Target, Uid: r.UID, Gid: r.GID}
	if out.Target == "" {
		out.Target = r.Source
	}
	if kind == skepv1.SecretKind_SECRET_KIND_SECRET {
		out.Target = strings.TrimPrefix(out.Target, spec.SecretsDir+"/")
	}
	if r.Mode != nil {
		if *r.Mode <= 0 || *r.Mode > 0o7777 {
			s.wrongAt(append(path, "mode"), "it is no mode of a file: write it with a leading 0, such as 0440")
			return nil
		}
		out.Mode = uint32(*r.Mode)
		s.decimalMode(append(path, "mode"), out.Mode)
	}
	return out
}

// decimalMode notes a mode that was almost surely meant in octal.
func (s *service) decimalMode(path []string, mode uint32) {
	for _, usual := range []uint32{400, 440, 444, 500, 550, 555, 600, 640, 644, 660, 664, 666, 700, 750, 755, 770, 775, 777} {
		if mode == usual {
			s.noteAt(path, "without a leading 0 it is decimal, so the file's mode is %04o: 0%d was probably meant", mode, mode)
		}
	}
}

// rawAt is a value of the model by its keys.
func rawAt(m map[string]any, keys ...string) any {
	var v any = m
	for _, k := range keys {
		next, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = next[k]
	}
	return v
}

// nearest is what was probably meant, as the end of a sentence.
func nearest(word string, known []string) string {
	best, least := "", 3
	slices.Sort(known)
	for _, k := range known {
		if n := typo.Distance(word, k, least-1); n < least {
			best, least = k, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", best)
}

// containerLabelsPrinted are the labels without the one that says whose the container is.
func (s *service) containerLabelsPrinted() map[string]any {
	out := map[string]any{}
	for k, v := range s.out.Task.Container.Labels {
		if k != LabelNamespace {
			out[k] = v
		}
	}
	return out
}

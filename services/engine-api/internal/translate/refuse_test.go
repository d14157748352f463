package translate

import (
	"fmt"
	"strings"
	"testing"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
)

// TestRefusals: bad input is refused in Docker's words where it has some, and what skep has not is told from what is wrong. Where the
// rules are those of every client, they refuse it.
func TestRefusals(t *testing.T) {
	const in = `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"nginx"%s}%s}%s}`
	body := func(container, task, service string) string {
		return fmt.Sprintf(in, container, task, service)
	}
	for _, c := range []struct {
		body, want  string
		unsupported bool
	}{
		{`{"Name":"web"}`, "mismatched Runtime and *Spec fields", false},
		{body("", "", `,"Mode":{"Global":{},"Replicated":{}}`), "must specify only one service mode", false},
		{body("", "", `,"UpdateConfig":{"FailureAction":"explode"}`), "unrecognized update failure action explode", false},
		{body("", "", `,"RollbackConfig":{"Order":"sideways"}`), "unrecognized rollback order sideways", false},
		{body("", "", `,"RollbackConfig":{"FailureAction":"rollback"}`), "invalid rollback-failure-action rollback", false},
		{body("", "", `,"EndpointSpec":{"Mode":"anycast"}`), `invalid resolution mode: "anycast"`, false},
		{body("", "", `,"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishMode":"maybe"}]}`), "invalid publish mode value (maybe): must be either 'ingress' or 'host'", false},
		{body("", "", `,"EndpointSpec":{"Ports":[{"TargetPort":80,"Protocol":"icmp"}]}`), "invalid protocol value 'icmp'", false},
		{body("", "", `,"EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":80}]}`), "port published with ingress mode can't be used with dnsrr mode", false},
		{body("", `,"RestartPolicy":{"Condition":"often"}`, ""), `invalid RestartCondition: "often"`, false},
		{body("", `,"RestartPolicy":{"Delay":-1}`, ""), "restart-delay cannot be negative", false},
		{body("", `,"Runtime":"plugin","PluginSpec":{"name":"x"}`, ""), "TaskTemplate.PluginSpec is not supported", true},
		{body("", `,"Runtime":"attachment"`, ""), "NetworkAttachmentSpec is not supported", true},
		{body("", `,"Runtime":"wasm"`, ""), "unsupported runtime", true},
		{body("", `,"Resources":{"Limits":{"NanoCPUs":1}}`, ""), "Must be at least 0.001", false},
		{body("", `,"Resources":{"Reservations":{"MemoryBytes":1}}`, ""), "Must be at least 4MiB", false},
		{body("", `,"Resources":{"SwapBytes":1}`, ""), "memory swap provided, but no memory-limit was set", false},
		{body("", `,"Placement":{"Preferences":[{}]}`, ""), "placement preference must be of the format", false},
		{body("", `,"LogDriver":{"Name":"splunk"}`, ""), `log-driver "splunk" is none that nodes have`, false},
		{body(`,"Mounts":[{"Type":"floppy","Target":"/a"}]`, "", ""), `invalid MountType: "floppy"`, false},
		{body(`,"Mounts":[{"Type":"cluster","Source":"v","Target":"/a","ClusterOptions":{}}]`, "", ""), "type cluster (CSI volumes) is not supported", false},
		{body(`,"Mounts":[{"Source":"/a","Target":"/a"},{"Source":"/b","Target":"/a"}]`, "", ""), "duplicate mount point", false},
		{body(`,"Mounts":[{"Source":"/a","Target":"/a","BindOptions":{"NonRecursive":true,"ReadOnlyForceRecursive":true}}]`, "", ""), "NonRecursive and ReadOnlyForceRecursive", false},
		{body(`,"Mounts":[{"Type":"tmpfs","Target":"/a","TmpfsOptions":{"Options":[["noexec"]]}}]`, "", ""), "TmpfsOptions.Options of the mount at /a", true},
		{body(`,"Secrets":[null]`, "", ""), "malformed secret reference", false},
		{body(`,"Secrets":[{"SecretID":"a","SecretName":"key"}]`, "", ""), "no target provided: secret key", false},
		{body(`,"Configs":[{"ConfigID":"a","ConfigName":"c"}]`, "", ""), "either File or Runtime should be set", false},
		{body(`,"Configs":[{"ConfigID":"a","ConfigName":"c","File":{},"Runtime":{}}]`, "", ""), "cannot specify both File and Runtime", false},
		{body(`,"Configs":[{"ConfigID":"a","ConfigName":"c","Runtime":{}}]`, "", ""), "Configs.Runtime is not supported", true},
		{body(`,"Ulimits":[null]`, "", ""), "Ulimits[0] is null", false},
		{body(`,"DNSConfig":{"Nameservers":[""]}`, "", ""), "IP address is not correctly formatted", false},
		{body(`,"Healthcheck":{"Test":["HTTP",":0/"]}`, "", ""), "names no port", false},
		{body(`,"Healthcheck":{"Test":["HTTP"]}`, "", ""), "takes exactly one port", false},
		{body(`,"Healthcheck":{"Test":["TCP",":80/x"]}`, "", ""), "a port alone", false},
		{body(`,"Healthcheck":{"Retries":99999999999}`, "", ""), "Retries in HealthConfig is too large", false},
		{body(`,"Healthcheck":{"Interval":5}`, "", ""), "Interval in HealthConfig cannot be less than 1ms", false},
		{body(`,"Privileges":{"CredentialSpec":{}}`, "", ""), `must either provide "file", "registry", or "config"`, false},
		{body(`,"Privileges":{"CredentialSpec":{"File":"a","Registry":"b"}}`, "", ""), "cannot specify both", false},
		{body(`,"Privileges":{"SELinuxContext":{"Disable":true}}`, "", ""), "SELinuxContext is not supported", true},
		{body(`,"Privileges":{"Seccomp":{"Mode":"odd"}}`, "", ""), `invalid seccomp mode "odd"`, false},
		{body(`,"Isolation":"hyperv"`, "", ""), `invalid isolation "hyperv"`, false},
		{body(`,"Env":["A=\u0000secret"]`, "", ""), "task.container.env[0] holds a NUL", false},
	} {
		d, _, err := DecodeService([]byte(c.body))
		if err != nil {
			t.Fatalf("%s: %v", c.body, err)
		}
		s, _, err := ServiceFromDocker(d, nil)
		if err == nil {
			spec.Defaults(s)
			err = spec.Validate(s)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !fault.Is(err, fault.CodeInvalid) || IsUnsupported(err) != c.unsupported {
			t.Errorf("%s: got %v, want %q", c.body, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret\"") {
			t.Errorf("a value is shown: %v", err)
		}
	}
}

package spec

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"skep.dev/libs/fault"
	"skep.dev/libs/id"
	skepv1 "skep.dev/proto/skep/v1"
)

var (
	sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-]+(?:[./][a-zA-Z0-9_*-]+)+$`)
	domainName = regexp.MustCompile(`^(?:[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?)(?:\.[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?)*\.?$`)
	realTime   = regexp.MustCompile(`^SIGRT(?:MIN(?:\+[0-9]+)?|MAX(?:-[0-9]+)?)$`)
)

func validateContainer(c *skepv1.ContainerSpec) error {
	if _, err := parseImage(c.Image); err != nil {
		return err
	}
	if err := ValidateLabels(c.Labels); err != nil {
		return err
	}
	if c.RegistryAuth != "" && !id.Valid(c.RegistryAuth) {
		return fault.Invalid("ContainerSpec: registry_auth is the id of credentials that the vault keeps, never the credentials themselves")
	}
	checks := []func(*skepv1.ContainerSpec) error{
		validateProcess, validateMounts, validateHealth, validateReady, validateNames, validateRights,
		validateFiles,
	}
	for _, check := range checks {
		if err := check(c); err != nil {
			return err
		}
	}
	return nil
}

func validateProcess(c *skepv1.ContainerSpec) error {
	for _, e := range c.Env {
		k, _, _ := strings.Cut(e, "=")
		if k == "" {
			return fault.Invalid("invalid environment variable: %s: use KEY=value", strconv.Quote(e))
		}
		if strings.ContainsRune(e, 0) {
			return fault.Invalid("invalid environment variable %s: the value holds a NUL byte", k)
		}
	}
	if strings.ContainsAny(c.User, " \t\n") || strings.HasPrefix(c.User, ":") {
		return fault.Invalid("invalid user %q: use <name|uid>[:<group|gid>]", c.User)
	}
	if slices.Contains(c.Groups, "") {
		return fault.Invalid("invalid group \"\": use a name or a gid")
	}
	if c.Dir != "" && !strings.HasPrefix(c.Dir, "/") {
		return fault.Invalid("invalid workdir %q: use an absolute path", c.Dir)
	}
	if err := notNegative("ContainerSpec: stop-grace-period", c.StopGracePeriod); err != nil {
		return err
	}
	if c.StopSignal != "" {
		if !knownSignal(c.StopSignal) {
			return fault.Invalid("invalid stop-signal %q: use a name such as SIGTERM, or 1 to 64", c.StopSignal)
		}
	}
	if c.OomScoreAdj < -1000 || c.OomScoreAdj > 1000 {
		return fault.Invalid("invalid value %d, oom-score-adj must be in the range [-1000, 1000]", c.OomScoreAdj)
	}
	switch c.Isolation {
	case "", "default":
	default:
		return fault.Invalid("invalid isolation %q: only default exists on Linux", c.Isolation)
	}
	return nil
}

func validateNames(c *skepv1.ContainerSpec) error {
	if h := c.Hostname; h != "" && !strings.Contains(h, "{{") && (len(h) > 63 || !domainName.MatchString(h)) {
		return fault.Invalid("invalid hostname %q: use letters, digits and hyphens, at most 63", h)
	}
	for _, h := range c.Hosts {
		f := strings.Fields(h)
		if len(f) < 2 {
			return fault.Invalid("bad format for add-host: %q: use \"IP name\"", h)
		}
		if _, err := netip.ParseAddr(f[0]); err != nil {
			return fault.Invalid("invalid IP address in add-host: %q", f[0])
		}
	}
	for _, n := range c.Dns.GetNameservers() {
		if _, err := netip.ParseAddr(n); err != nil {
			return fault.Invalid("IP address is not correctly formatted: %s", n)
		}
	}
	for _, d := range c.Dns.GetSearch() {
		if d != "." && (len(d) > 253 || !domainName.MatchString(d)) {
			return fault.Invalid("%s is not a valid domain", d)
		}
	}
	for _, o := range c.Dns.GetOptions() {
		if o == "" || strings.ContainsAny(o, " \t\n") {
			return fault.Invalid("invalid dns-option %q: use name or name:value", o)
		}
	}
	return nil
}

func validateRights(c *skepv1.ContainerSpec) error {
	for k, v := range c.Sysctls {
		if !sysctlName.MatchString(k) {
			return fault.Invalid("invalid sysctl %q: use a name such as net.ipv4.ip_forward=1", k)
		}
		if strings.ContainsAny(v, "\n\x00") {
			return fault.Invalid("invalid value of sysctl %s: one line only", k)
		}
	}
	for _, v := range append(slices.Clone(c.CapabilityAdd), c.CapabilityDrop...) {
		if n := normalizeCapability(v); n != "ALL" && !slices.Contains(capabilities, n) {
			return fault.Invalid("invalid capability: %q: use a name such as CAP_NET_ADMIN, or ALL", v)
		}
	}
	seen := map[string]bool{}
	for _, u := range c.Ulimits {
		if err := CheckUlimit(u); err != nil {
			return err
		}
		if seen[u.Name] {
			return fault.Invalid("duplicate ulimit %s", u.Name)
		}
		seen[u.Name] = true
	}
	if p := c.Privileges; p != nil {
		switch p.SeccompMode {
		case "", "default", "unconfined":
			if len(p.SeccompProfile) > 0 {
				return fault.Invalid("cannot set seccomp profile without setting seccomp mode custom")
			}
		case "custom":
			if len(p.SeccompProfile) == 0 {
				return fault.Invalid("seccomp mode custom needs a profile")
			}
		default:
			return fault.Invalid("invalid seccomp mode %q: use default, unconfined or custom", p.SeccompMode)
		}
		switch p.ApparmorMode {
		case "", "disabled": // the same: no node loads a profile
		case "default":
			return fault.Invalid("apparmor mode default: containers are not confined by an AppArmor profile here; leave it out, or say disabled")
		default:
			return fault.Invalid("invalid apparmor mode %q: use disabled, or leave it out", p.ApparmorMode)
		}
		if p.CredentialSpec != "" {
			scheme, _, _ := strings.Cut(p.CredentialSpec, "://")
			if scheme != "config" && scheme != "file" && scheme != "registry" {
				return fault.Invalid("invalid credential spec %q: use config://, file:// or registry://", p.CredentialSpec)
			}
		}
	}
	return nil
}

func normalizeCapability(v string) string {
	v = strings.ToUpper(strings.TrimSpace(v))
	if v == "ALL" || v == "" || strings.HasPrefix(v, "CAP_") {
		return v
	}
	return "CAP_" + v
}

var capabilities = strings.Fields(`CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_AUDIT_WRITE CAP_BLOCK_SUSPEND CAP_BPF CAP_CHECKPOINT_RESTORE
	CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_IPC_LOCK CAP_IPC_OWNER CAP_KILL CAP_LEASE
	CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_MKNOD CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_RAW
	CAP_PERFMON CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYSLOG CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_CHROOT CAP_SYS_MODULE
	CAP_SYS_NICE CAP_SYS_PACCT CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM`)

// knownSignal: a number the kernel has, or a name with or without SIG.
func knownSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return unix.SignalNum(name) != 0 || realTime.MatchString(name)
}

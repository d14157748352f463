package translate

import (
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

func privilegesFromDocker(p *swarm.Privileges) (*skepv1.Privileges, error) {
	if p == nil {
		return nil, nil
	}
	out := &skepv1.Privileges{NoNewPrivileges: p.NoNewPrivileges}
	var err error
	if out.CredentialSpec, err = credentialFromDocker(p.CredentialSpec); err != nil {
		return nil, err
	}
	if c := p.SELinuxContext; c != nil && *c != (swarm.SELinuxContext{}) {
		return nil, notKept("TaskTemplate.ContainerSpec.Privileges.SELinuxContext", "nodes give containers no SELinux labels, leave it out")
	}
	if s := p.Seccomp; s != nil {
		out.SeccompMode, out.SeccompProfile = string(s.Mode), s.Profile
	}
	if a := p.AppArmor; a != nil {
		out.ApparmorMode = string(a.Mode)
	}
	if out.CredentialSpec == "" && out.SeccompMode == "" && len(out.SeccompProfile) == 0 && out.ApparmorMode == "" && !out.NoNewPrivileges {
		return nil, nil
	}
	return out, nil
}

func privilegesToDocker(p *skepv1.Privileges) *swarm.Privileges {
	if p == nil {
		return nil
	}
	out := &swarm.Privileges{NoNewPrivileges: p.GetNoNewPrivileges()}
	if scheme, rest, ok := strings.Cut(p.GetCredentialSpec(), "://"); ok && rest != "" {
		out.CredentialSpec = &swarm.CredentialSpec{}
		switch scheme {
		case "config":
			out.CredentialSpec.Config = rest
		case "file":
			out.CredentialSpec.File = rest
		default:
			out.CredentialSpec.Registry = rest
		}
	}
	if p.GetSeccompMode() != "" || len(p.GetSeccompProfile()) > 0 {
		out.Seccomp = &swarm.SeccompOpts{Mode: swarm.SeccompMode(p.GetSeccompMode()), Profile: p.GetSeccompProfile()}
	}
	if p.GetApparmorMode() != "" {
		out.AppArmor = &swarm.AppArmorOpts{Mode: swarm.AppArmorMode(p.GetApparmorMode())}
	}
	return out
}

func credentialFromDocker(c *swarm.CredentialSpec) (string, error) {
	if c == nil {
		return "", nil
	}
	var given []string
	for _, one := range [][2]string{{"config", c.Config}, {"file", c.File}, {"registry", c.Registry}} {
		if one[1] != "" {
			given = append(given, one[0]+"://"+one[1])
		}
	}
	switch len(given) {
	case 0:
		return "", fault.Invalid(`invalid CredentialSpec: must either provide "file", "registry", or "config" for credential spec`)
	case 1:
		return given[0], nil
	}
	return "", fault.Invalid("invalid CredentialSpec: cannot specify both %s credential specs", strings.Join(given, " and "))
}

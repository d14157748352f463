package ocispec

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	skepv1 "skep.dev/proto/skep/v1"
)

// homeOfUser marks a spec whose HOME is the user's, not one that image or service gave.
const homeOfUser = "dev.skep.home-of-user"

// SetHome gives a process of another user, in a container with this spec, that user's home.
func SetHome(s *oci.Spec, p *specs.Process, home string) {
	if _, ok := s.Annotations[homeOfUser]; ok {
		p.Env = SetEnv(p.Env, "HOME="+home)
	}
}

func userOf(c *skepv1.ContainerSpec, image string) string {
	if c.GetUser() != "" {
		return c.User
	}
	return image
}

// LookupUser resolves "user[:group]" and extra groups with the container's own files, as docker does.
func LookupUser(who string, groups []string, passwd, group []byte) (specs.User, string, error) {
	def := &user.ExecUser{Uid: 0, Gid: 0, Home: "/"}
	eu, err := user.GetExecUser(who, def, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, "", fmt.Errorf("user %q: %w", who, err)
	}
	u := specs.User{UID: uint32(eu.Uid), GID: uint32(eu.Gid)}
	for _, g := range eu.Sgids {
		u.AdditionalGids = append(u.AdditionalGids, uint32(g))
	}
	if len(groups) > 0 {
		extra, err := user.GetAdditionalGroups(groups, bytes.NewReader(group))
		if err != nil {
			return specs.User{}, "", fmt.Errorf("groups %v: %w", groups, err)
		}
		for _, g := range extra {
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
	}
	return u, eu.Home, nil
}

func setUser(s *oci.Spec, in Input, c *skepv1.ContainerSpec) error {
	u, home, err := LookupUser(userOf(c, in.Image.User), c.GetGroups(), in.Passwd, in.Group)
	if err != nil {
		return err
	}
	s.Process.User = u
	// Without HOME runc would read the container's /etc/passwd for it, and wait for whatever a stranger put there.
	if !slices.ContainsFunc(s.Process.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		s.Process.Env = append(s.Process.Env, "HOME="+home)
		s.Annotations = map[string]string{homeOfUser: ""}
	}
	return nil
}

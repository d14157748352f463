package ocispec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// dockerProfile is the JSON of docker's --security-opt seccomp=FILE, which is OCI's plus rules that depend on
// the architecture and the capabilities.
type dockerProfile struct {
	DefaultAction   specs.LinuxSeccompAction `json:"defaultAction"`
	DefaultErrnoRet *uint                    `json:"defaultErrnoRet"`
	Architectures   []specs.Arch             `json:"architectures"`
	ArchMap         []struct {
		Arch    specs.Arch   `json:"architecture"`
		SubArch []specs.Arch `json:"subArchitectures"`
	} `json:"archMap"`
	Flags    []specs.LinuxSeccompFlag `json:"flags"`
	Syscalls []struct {
		specs.LinuxSyscall
		Name     string `json:"name"`
		Includes filter `json:"includes"`
		Excludes filter `json:"excludes"`
	} `json:"syscalls"`
}

type filter struct {
	Caps   []string `json:"caps"`
	Arches []string `json:"arches"`
}

func customSeccomp(body []byte, s *oci.Spec) (*specs.LinuxSeccomp, error) {
	var p dockerProfile
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("not a docker seccomp profile: %w", err)
	}
	if p.DefaultAction == "" {
		return nil, errors.New("it has no defaultAction")
	}
	native := map[string]struct {
		arch specs.Arch
		name string
	}{"amd64": {specs.ArchX86_64, "amd64"}, "arm64": {specs.ArchAARCH64, "arm64"}}[goarch]
	out := &specs.LinuxSeccomp{DefaultAction: p.DefaultAction, DefaultErrnoRet: p.DefaultErrnoRet, Architectures: p.Architectures, Flags: p.Flags}
	for _, m := range p.ArchMap {
		if m.Arch == native.arch {
			out.Architectures = append([]specs.Arch{m.Arch}, m.SubArch...)
		}
	}
	caps := s.Process.Capabilities.Bounding
	for _, r := range p.Syscalls {
		if len(r.Excludes.Arches) > 0 && slices.Contains(r.Excludes.Arches, native.name) ||
			len(r.Includes.Arches) > 0 && !slices.Contains(r.Includes.Arches, native.name) {
			continue
		}
		skip := false
		for _, c := range r.Excludes.Caps {
			skip = skip || slices.Contains(caps, c)
		}
		for _, c := range r.Includes.Caps {
			skip = skip || !slices.Contains(caps, c)
		}
		if skip {
			continue
		}
		if r.Name != "" {
			r.Names = append(r.Names, r.Name)
		}
		out.Syscalls = append(out.Syscalls, r.LinuxSyscall)
	}
	return out, nil
}

package engine

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"skep.dev/libs/api"
	"skep.dev/libs/member"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// ping is what every command of docker begins with. It asks nobody: whether there is a cluster, the next request finds out.
func (s *Service) ping(w http.ResponseWriter, _ *wire.Request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "1") // without it docker asks for buildx before it says that nothing is built here
	h.Set("Swarm", s.ownStanding())
	h.Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("OK")) // the client is gone if this fails
	return nil
}

// ownStanding is what this node says of itself, of which docker shows or hides commands in its help.
func (s *Service) ownStanding() string {
	rec, err := member.Load(s.cfg.Paths)
	switch {
	case errors.Is(err, member.ErrNoNode):
		return "inactive"
	case err != nil:
		return "error"
	case rec.Role == member.RoleManager:
		return "active/manager"
	}
	return "active/worker"
}

// version is `docker version`'s server. Its version is skep's.
func (s *Service) version(w http.ResponseWriter, _ *wire.Request) error {
	kernel, _ := uname()
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "skep"}, Version: s.cfg.Version, APIVersion: wire.Newest.String(), MinAPIVersion: wire.Oldest.String(),
		Os: runtime.GOOS, Arch: runtime.GOARCH, GitCommit: s.cfg.Commit, GoVersion: runtime.Version(), KernelVersion: kernel,
	}
	v.Components = []system.ComponentVersion{{Name: "Engine", Version: v.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "GitCommit": v.GitCommit, "GoVersion": v.GoVersion,
		"Os": v.Os, "Arch": v.Arch, "KernelVersion": kernel, "Experimental": "false",
	}}}
	return wire.WriteJSON(w, http.StatusOK, v)
}

// infoWithin is how long /info waits for the cluster: clients ask it before they do anything else, and it answers without too.
const infoWithin = 3 * time.Second

// info is the node and how it stands in its cluster. It answers on every node, whatever the cluster does.
func (s *Service) info(w http.ResponseWriter, r *wire.Request) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	kernel, arch := uname()
	i := system.Info{
		Name: host, ServerVersion: s.cfg.Version, KernelVersion: kernel, OperatingSystem: operatingSystem(), OSType: runtime.GOOS, Architecture: arch,
		NCPU: runtime.NumCPU(), MemTotal: memory(), SystemTime: time.Now().Format(time.RFC3339Nano), DockerRootDir: s.cfg.Paths.Data,
		Driver: "overlayfs", DriverStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}, LoggingDriver: "json-file", CgroupDriver: "cgroupfs", CgroupVersion: "2",
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true, IPv4Forwarding: true,
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: &registry.ServiceConfig{},
		Plugins:  system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null", "overlay"}, Log: []string{"json-file"}},
		Runtimes: map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}}}, DefaultRuntime: "runc", InitBinary: "skep-init",
		LiveRestoreEnabled: true, // tasks outlive the daemon
		SecurityOptions:    []string{"name=seccomp,profile=builtin"},
		Labels:             []string{}, GenericResources: []swarm.GenericResource{}, CDISpecDirs: []string{},
		Warnings: []string{"skep: single containers, images and volumes are not served through this API (docs/docker.md): they are not counted here"},
	}
	ctx, cancel := context.WithTimeout(r.Context(), infoWithin)
	defer cancel()
	i.Swarm = s.swarmInfo(ctx)
	i.ID = i.Swarm.NodeID
	return wire.WriteJSON(w, http.StatusOK, i)
}

// swarmInfo is how this node stands in its cluster.
func (s *Service) swarmInfo(ctx context.Context) swarm.Info {
	rec, err := member.Load(s.cfg.Paths)
	local := translate.LocalNode{State: swarm.LocalNodeStateActive}
	switch {
	case errors.Is(err, member.ErrNoNode):
		local.State = swarm.LocalNodeStateInactive
	case err != nil:
		local.State, local.Err = swarm.LocalNodeStateError, err.Error()
	}
	if err != nil {
		return peers(translate.SwarmInfo(local, nil, nil, translate.ClusterView{}), nil)
	}
	local.ID, local.Addr = rec.NodeID, rec.Host()
	if rec.Role != member.RoleManager {
		return peers(translate.SwarmInfo(local, nil, nil, translate.ClusterView{}), rec.ManagerAddrs())
	}
	c, err := call(ctx, s.cluster, api.ClusterInspect, &skepv1.Empty{})
	var nodes []*skepv1.Node
	if err == nil {
		nodes, err = s.nodes(ctx)
	}
	if err != nil {
		local.State, local.Err = swarm.LocalNodeStatePending, err.Error()
		return peers(translate.SwarmInfo(local, nil, nil, translate.ClusterView{}), rec.ManagerAddrs())
	}
	local.Manager = true
	if s.locked(ctx, rec.NodeID) {
		local.State = swarm.LocalNodeStateLocked
	}
	return peers(translate.SwarmInfo(local, nodes, c.GetCluster(), s.clusterView(ctx)), nil)
}

// peers are the managers a node knows by their addresses alone; clients find a list in any case.
func peers(i swarm.Info, addrs []string) swarm.Info {
	if i.RemoteManagers == nil {
		i.RemoteManagers = []swarm.Peer{}
	}
	for _, a := range addrs {
		i.RemoteManagers = append(i.RemoteManagers, swarm.Peer{Addr: a})
	}
	return i
}

// uname is the kernel's version and the machine's architecture, as Docker writes it.
func uname() (kernel, arch string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", runtime.GOARCH // a kernel that does not say is no reason to say nothing
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
}

// memory of the machine, bytes.
func memory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0 // as uname
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// operatingSystem is what the machine calls itself.
func operatingSystem() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if name, is := strings.CutPrefix(sc.Text(), "PRETTY_NAME="); is {
			return strings.Trim(name, `"`)
		}
	}
	return "Linux"
}

package agent

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/sctp"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/volume"
)

func (s *Service) describeAgain() {
	select {
	case s.desc <- struct{}{}:
	default:
	}
}

// describeLoop tells the managers what the node is: at the start, after a reconnect, and when it changed.
func (s *Service) describeLoop(ctx context.Context) {
	s.describeAgain()
	look := time.NewTicker(time.Minute)
	defer look.Stop()
	var sent *skepv1.NodeDescription
	backoff := 100 * time.Millisecond
	for {
		force := false
		select {
		case <-ctx.Done():
			return
		case <-s.desc:
			force = true
		case <-look.C:
		}
		d := s.describe(ctx)
		if !force && proto.Equal(d, sent) {
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		r, err := api.Call(cctx, s.cfg.NC, api.StateDescribe.At(s.cfg.NodeID), &skepv1.DescribeRequest{NodeId: s.cfg.NodeID, Description: d, Session: s.session})
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				s.log.Debug("describe the node", zap.Error(err))
			}
			time.AfterFunc(backoff/2+rand.N(backoff), s.describeAgain)
			backoff = min(2*backoff, 5*time.Second)
			continue
		}
		backoff = 100 * time.Millisecond
		sent = d
		s.setCluster(r.GetCluster())
	}
}

func (s *Service) describe(ctx context.Context) *skepv1.NodeDescription {
	d := &skepv1.NodeDescription{
		Hostname: s.cfg.Hostname, Platform: &skepv1.Platform{Os: "linux", Arch: runtime.GOARCH},
		Resources:     &skepv1.Resources{NanoCpus: int64(runtime.NumCPU()) * 1e9, MemoryBytes: meminfo("MemTotal")},
		EngineVersion: s.cfg.Version, EngineLabels: s.cfg.Labels, Addr: s.cfg.AdvertiseAddr, DataPathAddr: s.cfg.DataPathAddr,
		MaxTasks: s.cfg.MaxTasks,
		Plugins:  []*skepv1.Plugin{{Type: "Log", Name: "json-file"}, {Type: "Log", Name: "local"}, {Type: "Log", Name: "none"}, {Type: "Volume", Name: volume.Local, Scope: volume.ScopeLocal}},
	}
	d.Plugins = append(d.Plugins, s.plugins.List()...)
	if k := sctp.Kernel(); k.Tracked && k.Sockets {
		d.Plugins = append(d.Plugins, &skepv1.Plugin{Type: sctp.PluginType, Name: sctp.Plugin})
	}
	if s.cfg.Certificate != nil {
		leaf := s.cfg.Certificate.Certificate().Leaf
		d.CertFromUnixMs, d.CertUntilUnixMs = leaf.NotBefore.UnixMilli(), leaf.NotAfter.UnixMilli()
	}
	kinds := make([]string, 0, len(s.cfg.Generic))
	for k := range s.cfg.Generic {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		vals := s.cfg.Generic[k]
		g := &skepv1.GenericResource{Kind: k}
		if len(vals) == 1 {
			if n, err := strconv.ParseInt(vals[0], 10, 64); err == nil {
				g.Value = n
				d.Resources.Generic = append(d.Resources.Generic, g)
				continue
			}
		}
		g.Named = vals
		d.Resources.Generic = append(d.Resources.Generic, g)
	}
	// One that cannot be read says nothing, and the node is as good without it.
	if routes, more, err := hostRoutes(); err != nil {
		s.log.Debug("describe the node", zap.Error(err))
	} else {
		d.Routes, d.RoutesMore = routes, uint32(more)
	}
	var since time.Time
	if d.Trouble, since = s.trouble.is(); d.Trouble != "" {
		d.TroubleSinceUnixMs = since.UnixMilli()
		return d // who does not answer is not asked
	}
	vctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if v, err := s.runtime.Version(vctx); err == nil {
		d.RuntimeVersion = v
	}
	return d
}

func meminfo(key string) int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}

// hostUse is the host's used CPU time since boot and memory in use.
func hostUse() (cpu, memory uint64) {
	if b, err := os.ReadFile("/proc/stat"); err == nil {
		line, _, _ := strings.Cut(string(b), "\n")
		// cpu user nice system idle iowait irq softirq steal, in hundredths of a second
		for i, f := range strings.Fields(line) {
			if i == 0 || i == 4 || i == 5 || i > 8 {
				continue
			}
			n, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				break
			}
			cpu += n * 10_000_000
		}
	}
	if total, free := meminfo("MemTotal"), meminfo("MemAvailable"); total > free {
		memory = uint64(total - free)
	}
	return cpu, memory
}

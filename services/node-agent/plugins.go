package agent

import (
	"context"
	"path/filepath"

	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/plugin"
)

// openPlugins finds the node's volume plug-ins and what they have mounted for its tasks.
func (s *Service) openPlugins() (*plugin.Plugins, error) {
	dirs, err := plugin.ParseDirs(s.cfg.PluginDirs)
	if err != nil {
		return nil, err
	}
	return plugin.Open(plugin.Config{
		Dirs: dirs, State: filepath.Join(s.dir(), "mounts"), Keep: []string{s.cfg.DataDir, s.cfg.RunDir}, Node: s.cfg.Hostname, Log: s.log.Named("plugins"),
		Changed: s.report.changed, Described: s.describeAgain, Called: s.meter.pluginCalled,
	})
}

// reconcileVolumes has the volumes of plug-ins unmounted that no task needs. One whose container is there still, or whose
// end is not known, needs them.
func (s *Service) reconcileVolumes(ctx context.Context) {
	found, err := s.runtime.List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("volumes that no task needs stay mounted for now", zap.Error(err))
		}
		return
	}
	s.plugins.Reconcile(func(task string) bool {
		_, there := found[task]
		_, st := s.set.Job(task)
		return there || st != nil && st.State < skepv1.TaskState_TASK_STATE_COMPLETE
	})
}

// goneDriver is the plug-in that does not answer and whose volume of that name may be mounted here; err is returned if there is none.
func (s *Service) goneDriver(name string, err error) (string, error) {
	for _, h := range s.plugins.Held() {
		if h.Name == name && !s.plugins.Answers(h.Driver) {
			return h.Driver, nil
		}
	}
	return "", err
}

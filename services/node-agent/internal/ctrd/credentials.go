package ctrd

import (
	"context"
	"errors"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/registry"
	"skep.dev/services/node-agent/internal/task"
)

// credentialsOf asks the vault for what a task's image is pulled with, when it is to be pulled; nil when its service has none.
func (r *Runtime) credentialsOf(j *task.Job, progress func(string)) func(context.Context) (*skepv1.DeliveredValue, error) {
	if j.Container().GetRegistryAuth() == "" {
		return nil
	}
	return func(ctx context.Context) (*skepv1.DeliveredValue, error) {
		if r.cfg.Courier == nil {
			return nil, errors.New("this node cannot be given registry credentials")
		}
		progress("waiting for the registry's credentials")
		return r.cfg.Courier.Registry(ctx, j.ID())
	}
}

// pullWith pulls with what credentials gives, nil = without.
func (s *Images) pullWith(ctx context.Context, p parsed, credentials func(context.Context) (*skepv1.DeliveredValue, error), progress func(string)) (*Image, error) {
	var a registry.Auth
	if credentials != nil {
		v, err := credentials(ctx)
		if err != nil {
			return nil, err
		}
		if a, err = registry.ParseAuth(v); err != nil {
			return nil, err
		}
	}
	return s.Pull(ctx, p, a, progress)
}

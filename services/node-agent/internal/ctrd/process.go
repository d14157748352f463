package ctrd

import (
	"context"
	"encoding/json"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skep.dev/libs/containers"
	"skep.dev/libs/fault"
)

// Process is what a task's container runs.
func (r *Runtime) Process(ctx context.Context, id string) (*containers.Process, error) {
	c, err := r.client.ContainerService().Get(r.ns(ctx), id)
	if errdefs.IsNotFound(err) {
		return nil, fault.NotFound("the container of task %s is not there any more", id)
	}
	if err != nil {
		return nil, fault.Unavailable("read the container of task %s: %v", id, err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(c.Spec.GetValue(), &spec); err != nil || spec.Process == nil {
		return nil, fault.Unavailable("read the container of task %s: %v", id, err)
	}
	return &containers.Process{Args: spec.Process.Args, Env: spec.Process.Env, Dir: spec.Process.Cwd, Hostname: spec.Hostname}, nil
}

// Processes are the pids of a task's container, as the node counts them.
func (r *Runtime) Processes(id string) []int { return r.cg.Processes(r.CgroupPath(id)) }

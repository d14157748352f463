package ctrd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"skep.dev/libs/attach"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/ocispec"
	"skep.dev/services/node-agent/internal/task"
)

const labelStopSignal = "dev.skep.stop-signal"

// Prepare implements task.Runtime.
func (r *Runtime) Prepare(ctx context.Context, j *task.Job, progress func(string)) (task.Prepared, error) {
	ctx = r.ns(ctx)
	c := j.Container()
	// What cannot work is refused before anything is fetched for it.
	if err := r.cfg.Logs.Check(j.Revision.GetSpec().GetTask().GetLogDriver()); err != nil {
		return task.Prepared{}, err
	}
	img, err := r.Images.Ensure(ctx, c.GetImage(), r.credentialsOf(j, progress), progress)
	if err != nil {
		return task.Prepared{}, err
	}
	names := r.namesOf(j)
	// Before its turn: a server that does not answer holds up this task alone.
	volumes, err := r.attachVolumes(ctx, j, names, progress)
	if err != nil {
		return task.Prepared{}, trouble(err)
	}
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return task.Prepared{}, err
	}
	defer r.slots.Release(1)
	given, err := r.fetchFiles(ctx, j, progress)
	if err != nil {
		return task.Prepared{}, err
	}
	defer given.wipe()
	hostname, err := names.Hostname(c.GetHostname())
	if err != nil {
		return task.Prepared{}, err
	}
	att, err := r.attach(ctx, j, hostname)
	if err != nil {
		return task.Prepared{}, err
	}
	if err := r.create(ctx, j, img, names, hostname, att, given, volumes); err != nil {
		if errdefs.IsNotFound(err) {
			r.Images.forget() // the image went away under us: look again
			err = task.Temporary(err)
		}
		return task.Prepared{}, trouble(err)
	}
	p := prepared(j.ID(), img, att)
	p.Files = given.held()
	return p, nil
}

// create makes snapshot, volumes, files and the container itself. What is left of an earlier try goes first.
func (r *Runtime) create(ctx context.Context, j *task.Job, img *Image, names ocispec.Names, hostname string, att attach.Attachment, given *delivered, volumes []string) error {
	id := j.ID()
	return withLease(ctx, r.client, "task-"+id, func(ctx context.Context) error {
		snap := r.client.SnapshotService(snapshotter)
		root, err := snap.Prepare(ctx, id, img.Chain)
		if errdefs.IsAlreadyExists(err) {
			if err := r.discard(ctx, id); err != nil {
				return err
			}
			root, err = snap.Prepare(ctx, id, img.Chain)
		}
		if err != nil {
			return fmt.Errorf("prepare the root file system: %w", err)
		}
		passwd, group, err := img.accounts(ctx, root)
		if err != nil {
			return err
		}
		in := ocispec.Input{
			Names: names, Service: j.Revision.GetSpec(), Record: j.Record, Image: img.Config, Passwd: passwd, Group: group,
			Netns: att.Netns, Cgroup: r.CgroupPath(id), Limits: r.host,
		}
		if j.Container().GetInit() {
			in.Init, _ = Find("skep-init", r.path) // none: Build says so
		}
		if in.Mounts, err = r.mounts(ctx, j, names, img, root, volumes); err != nil {
			return err
		}
		secret, err := r.placeFiles(j, in, hostname, given)
		if err != nil {
			return err
		}
		in.Mounts = append(in.Mounts, secret...)
		if err := r.etcFiles(&in, j, hostname, att); err != nil {
			return err
		}
		spec, err := ocispec.Build(in)
		if err != nil {
			return err
		}
		specAny, err := typeurl.MarshalAnyToProto(spec)
		if err != nil {
			return fmt.Errorf("encode the container's spec: %w", err)
		}
		optsAny, err := typeurl.MarshalAnyToProto(&options.Options{BinaryName: r.runc, Root: filepath.Join(r.cfg.RunDir, "runc")})
		if err != nil {
			return fmt.Errorf("encode the runtime's options: %w", err)
		}
		rec := containers.Container{
			ID: id, Image: img.Name, Snapshotter: snapshotter, SnapshotKey: id, Spec: specAny,
			Labels: map[string]string{
				"com.docker.swarm.task": "", "com.docker.swarm.task.id": id, "com.docker.swarm.task.name": names.Task.Name,
				"com.docker.swarm.node.id": r.cfg.NodeID, "com.docker.swarm.service.id": j.Record.GetServiceId(),
				"com.docker.swarm.service.name": names.Service.Name, labelStopSignal: img.Config.StopSignal,
			},
			Runtime: containers.RuntimeInfo{Name: runcRuntime, Options: optsAny},
		}
		if _, err := r.client.ContainerService().Create(ctx, rec); err != nil {
			return fmt.Errorf("create the container: %w", err)
		}
		return nil
	})
}

// etcFiles writes what is bind-mounted into /etc, and the files the shim writes the output to.
func (r *Runtime) etcFiles(in *ocispec.Input, j *task.Job, hostname string, att attach.Attachment) error {
	c := j.Container()
	etc := filepath.Join(j.Dir, "etc")
	if err := os.MkdirAll(etc, 0o700); err != nil {
		return fmt.Errorf("make the task's files: %w", err)
	}
	for _, f := range []struct {
		name, text string
		path       *string
	}{
		{"hosts", ocispec.HostsFile(hostname, ownAddresses(att), c.GetHosts()), &in.Hosts},
		{"resolv.conf", ocispec.ResolvConf(att.DNS, c.GetDns(), ocispec.HostResolvConf()), &in.Resolv},
		{"hostname", hostname + "\n", &in.Hostname},
	} {
		*f.path = filepath.Join(etc, f.name)
		// Readable by every user inside; the folder above keeps the host's own users out.
		if err := os.WriteFile(*f.path, []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("write the container's %s: %w", f.name, err)
		}
	}
	return r.cfg.Logs.Prepare(j.ID(), j.Dir, j.Revision.GetSpec().GetTask().GetLogDriver())
}

// discard removes container and snapshot of a task that does not run.
func (r *Runtime) discard(ctx context.Context, id string) error {
	if err := r.deleteTask(ctx, id); err != nil {
		return err
	}
	if err := r.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	if err := r.client.SnapshotService(snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the root file system of %s: %w", id, err)
	}
	return r.subpaths.release(id)
}

// withRoot gives the container's fresh root as a folder.
func withRoot(ctx context.Context, root []mount.Mount, f func(dir string) error) error {
	return mount.WithTempMount(ctx, root, f)
}

// grace is the time from the stop signal to the kill.
func grace(c *skepv1.ContainerSpec) time.Duration {
	if g := c.GetStopGracePeriod(); g != nil {
		return g.AsDuration()
	}
	return 10 * time.Second
}

func signalName(c *skepv1.ContainerSpec, img string) string {
	switch {
	case c.GetStopSignal() != "":
		return strings.ToUpper(c.StopSignal)
	case img != "":
		return strings.ToUpper(img)
	}
	return "SIGTERM"
}

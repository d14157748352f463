package ctrd

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/images"

	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/registry"
	"skep.dev/services/node-agent/internal/task"
)

// resolvePatience is how long a registry may take before the local store answers for it.
const resolvePatience = 5 * time.Second

// Context puts a context into skep's namespace of containerd.
func (r *Runtime) Context(ctx context.Context) context.Context { return r.ns(ctx) }

// inUse tells whether a task that has not ended uses the image; used holds the references of those tasks.
func (s *Images) inUse(ctx context.Context, img images.Image, used map[string]bool) bool {
	for ref := range used {
		p, err := parseRef(ref)
		if err != nil {
			continue
		}
		if p.digest == img.Target.Digest || p.digest == "" && p.name() == img.Name {
			return true
		}
	}
	return false
}

// ListImages returns the images on this node.
func (r *Runtime) ListImages(ctx context.Context, used map[string]bool) ([]Listed, error) {
	ctx = r.ns(ctx)
	list, err := r.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].InUse = r.Images.inUse(ctx, list[i].Image, used)
	}
	return list, nil
}

// RemoveImage removes an image by name or id; one in use only when forced.
func (r *Runtime) RemoveImage(ctx context.Context, ref string, force bool, used map[string]bool) ([]string, error) {
	ctx = r.ns(ctx)
	recs, err := r.Images.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !force {
		for _, rec := range recs {
			if r.Images.inUse(ctx, rec, used) {
				return nil, fault.Conflict("image %s is in use by a task on this node; --force removes its name all the same", ref)
			}
		}
	}
	return r.Images.Remove(ctx, recs)
}

// PullImage fetches an image by its tag or digest and keeps it under that name. auth nil: without credentials.
func (r *Runtime) PullImage(ctx context.Context, ref string, auth *skepv1.DeliveredValue) (name, digest string, err error) {
	p, err := parseRef(ref)
	if err != nil {
		return "", "", err
	}
	a, err := registry.ParseAuth(auth)
	if err != nil {
		return "", "", err
	}
	img, err := r.Images.Pull(r.ns(ctx), p, a, nil)
	if err != nil {
		return "", "", err
	}
	return p.familiar(), img.Target.String(), nil
}

// ResolveImage tells which digest a reference has now, and for which platforms.
func (r *Runtime) ResolveImage(ctx context.Context, ref string, auth *skepv1.DeliveredValue) (Resolved, error) {
	a, err := registry.ParseAuth(auth)
	if err != nil {
		return Resolved{}, fault.Invalid("%v", err)
	}
	out, err := r.Images.Resolve(r.ns(ctx), ref, a, resolvePatience)
	switch {
	case err == nil:
		return out, nil
	case task.IsTemporary(err):
		return Resolved{}, fault.Unavailable("%v", err)
	}
	return Resolved{}, fault.NotFound("%v", err)
}

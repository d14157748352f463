package state

import (
	"context"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"skep.dev/libs/api"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// resolveImage pins the spec's tag to the digest it has now and notes the platforms it exists for, by asking an
// agent that can reach registries. Failing only warns: each node then finds the image by itself. An image that is the one it
// had is left alone, unless somebody named it anew: a tag that could not be looked up before may be there now.
func (s *Service) resolveImage(ctx context.Context, want, had *skepv1.ServiceSpec, named, skip bool) (warnings []string) {
	c := want.Task.Container
	was := had.GetTask().GetContainer().GetImage()
	if c.Image == was && (!named || skip || spec.HasDigest(was)) {
		if len(want.Task.Placement.Platforms) == 0 {
			want.Task.Placement.Platforms = had.GetTask().GetPlacement().GetPlatforms()
		}
		return nil
	}
	if had != nil {
		want.Task.Placement.Platforms = nil // they were the old image's
	}
	if skip {
		return nil
	}
	full, err := spec.FullImage(c.Image)
	if err != nil {
		return nil // Validate has looked at it
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ResolveTimeout)
	defer cancel()
	reply, err := api.Call(ctx, s.cfg.NC, api.ImageResolve, &skepv1.ResolveImageRequest{Ref: full, RegistryAuth: c.RegistryAuth})
	if err != nil {
		s.log.Info("image not resolved", zap.String("image", c.Image), zap.Error(err))
		if spec.HasDigest(c.Image) {
			return nil
		}
		if sameTag(was, c.Image) {
			// The registry may be away, or the login expired: what runs already is not replaced by what nobody has seen.
			c.Image, want.Task.Placement.Platforms = was, had.Task.GetPlacement().GetPlatforms()
			return []string{fmt.Sprintf("image %s could not be accessed on a registry to record its digest: the service keeps the one it has.", full)}
		}
		return []string{fmt.Sprintf("image %s could not be accessed on a registry to record its digest. Each node will access %s independently, "+
			"possibly leading to different nodes running different versions of the image.", c.Image, c.Image)}
	}
	if name, err := spec.NormalizeImage(reply.Ref); err == nil && spec.HasDigest(name) {
		c.Image = name
	}
	want.Task.Placement.Platforms = reply.Platforms
	return uncovered(want, reply.Volumes)
}

// sameTag reports whether an image is one that was pinned to a digest before.
func sameTag(pinned, image string) bool {
	name, digest, ok := strings.Cut(pinned, "@")
	return ok && digest != "" && name == image
}

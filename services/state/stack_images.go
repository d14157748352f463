package state

import (
	"context"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"
)

// When a deploy looks up which digest a tag has: always; where the image's text is not what the revision before had; never.
// Where it is not looked up, an image that is called what it was called keeps its digest.
const (
	resolveAlways  = "always"
	resolveChanged = "changed"
	resolveNever   = "never"
)

// resolversAtOnce is how many images of one deploy are looked up at the same time.
const resolversAtOnce = 8

// stackImages pins the images of a stack, over those of the revision before (nil: there is none). Each is looked up once.
func (s *Service) stackImages(ctx context.Context, want, was *skepv1.StackSpec) (warnings []string) {
	type group struct{ services []*skepv1.ServiceSpec }
	had := map[string]*skepv1.ServiceSpec{}
	for _, sp := range was.GetServices() {
		had[sp.Name] = sp
	}
	groups := map[string]*group{}
	for _, sp := range want.Services {
		c, before := sp.Task.Container, had[sp.Name]
		if pinned := before.GetTask().GetContainer().GetImage(); want.ResolveImage != resolveAlways && sameTag(pinned, c.Image) {
			c.Image = pinned
		}
		key := strings.Join([]string{c.Image, before.GetTask().GetContainer().GetImage(), c.RegistryAuth}, "\x00")
		if groups[key] == nil {
			groups[key] = &group{}
		}
		groups[key].services = append(groups[key].services, sp)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, resolversAtOnce)
	for _, g := range groups {
		first := g.services[0]
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			told := s.resolveImage(ctx, first, had[first.Name], want.ResolveImage == resolveAlways, want.ResolveImage == resolveNever)
			for _, sp := range g.services[1:] {
				sp.Task.Container.Image = first.Task.Container.Image
				sp.Task.Placement.Platforms = nil
				for _, p := range first.Task.Placement.Platforms {
					sp.Task.Placement.Platforms = append(sp.Task.Placement.Platforms, proto.CloneOf(p))
				}
			}
			mu.Lock()
			warnings = append(warnings, told...)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(warnings)
	return slices.Compact(warnings)
}

package ctrd

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Resolved is what a registry, or this node, says of an image.
type Resolved struct {
	Ref       string // with its digest
	Platforms []v1.Platform
	// Volumes are those its configuration declares, on a platform like this node's, sorted; none when that could not be read.
	Volumes []string
}

// maxConfig is the largest manifest or configuration that is read only to warn.
const maxConfig = 1 << 20

// declaredBy reads which volumes an image declares: of one for several platforms that takes two small objects more. It is
// for a warning, so what cannot be read declares none.
func declaredBy(desc v1.Descriptor, match platforms.MatchComparer, read reader) []string {
	load := func(d v1.Descriptor, into any) bool {
		if d.Size > maxConfig {
			return false
		}
		body, err := read(d)
		return err == nil && json.Unmarshal(body, into) == nil
	}
	if images.IsIndexType(desc.MediaType) {
		var idx v1.Index
		if !load(desc, &idx) {
			return nil
		}
		mine := slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool {
			return !images.IsManifestType(d.MediaType) || d.Platform != nil && !match.Match(*d.Platform)
		})
		if len(mine) == 0 {
			return nil
		}
		slices.SortStableFunc(mine, func(a, b v1.Descriptor) int {
			if a.Platform != nil && b.Platform != nil && match.Less(*a.Platform, *b.Platform) {
				return -1
			}
			return 0
		})
		desc = mine[0]
	}
	var m v1.Manifest
	var img v1.Image
	if !load(desc, &m) || !load(m.Config, &img) {
		return nil
	}
	all := slices.Sorted(maps.Keys(img.Config.Volumes))
	return all[:min(len(all), maxDeclared)]
}

// reader reads an object of an image.
type reader func(v1.Descriptor) ([]byte, error)

// once reads every object one time.
func once(read reader) reader {
	have := map[digest.Digest][]byte{}
	return func(d v1.Descriptor) ([]byte, error) {
		if b, ok := have[d.Digest]; ok {
			return b, nil
		}
		b, err := read(d)
		if err == nil {
			have[d.Digest] = b
		}
		return b, err
	}
}

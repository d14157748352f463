package ctrd

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What an image declares is read from what its platform has, and from few and small objects: for a warning nothing is waited
// for, and nothing large is loaded.
func TestDeclaredVolumes(t *testing.T) {
	blobs := map[digest.Digest][]byte{}
	reads := 0
	read := once(func(d v1.Descriptor) ([]byte, error) {
		reads++
		if b, ok := blobs[d.Digest]; ok {
			return b, nil
		}
		return nil, errors.New("not there")
	})
	put := func(kind string, v any) v1.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := v1.Descriptor{MediaType: kind, Digest: digest.FromBytes(b), Size: int64(len(b))}
		blobs[d.Digest] = b
		return d
	}
	image := func(arch string, volumes ...string) v1.Descriptor {
		cfg := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: arch}, Config: v1.ImageConfig{Volumes: map[string]struct{}{}}}
		for _, v := range volumes {
			cfg.Config.Volumes[v] = struct{}{}
		}
		d := put(v1.MediaTypeImageManifest, v1.Manifest{Config: put(v1.MediaTypeImageConfig, cfg)})
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
		return d
	}
	match := platforms.Only(platforms.MustParse("linux/amd64"))
	if got := declaredBy(image("amd64", "/b", "/a"), match, read); !slices.Equal(got, []string{"/a", "/b"}) {
		t.Errorf("one platform: %v", got)
	}
	both := put(v1.MediaTypeImageIndex, v1.Index{Manifests: []v1.Descriptor{image("arm64", "/arm"), image("amd64", "/amd")}})
	reads = 0
	if got := declaredBy(both, match, read); !slices.Equal(got, []string{"/amd"}) || reads != 3 {
		t.Errorf("two platforms: %v after %d reads", got, reads)
	}
	var many []string
	for i := range maxDeclared + 50 {
		many = append(many, fmt.Sprintf("/v%d", i))
	}
	if got := declaredBy(image("amd64", many...), match, read); len(got) != maxDeclared {
		t.Errorf("%d of %d", len(got), len(many))
	}
	large := image("amd64", "/x")
	large.Size = maxConfig + 1
	for what, d := range map[string]v1.Descriptor{
		"too large": large, "not there": {MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("x")},
		"another platform": put(v1.MediaTypeImageIndex, v1.Index{Manifests: []v1.Descriptor{image("arm64", "/arm")}}),
		"no object":        put(v1.MediaTypeImageManifest, []string{"x"}),
	} {
		if got := declaredBy(d, match, read); got != nil {
			t.Errorf("%s: %v", what, got)
		}
	}
}

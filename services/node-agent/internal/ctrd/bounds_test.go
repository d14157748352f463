package ctrd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// claims is a content store of one blob, of which only the size is known.
type claims struct {
	content.Store
	size   int64
	closed bool
}

func (c *claims) ReaderAt(context.Context, v1.Descriptor) (content.ReaderAt, error) { return c, nil }
func (c *claims) Size() int64                                                       { return c.size }
func (c *claims) Close() error                                                      { c.closed = true; return nil }
func (c *claims) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader([]byte(strings.Repeat(" ", int(c.size)))).ReadAt(p, off)
}

// A document a stranger made too large is refused, and no memory made for it.
func TestDocumentsAreBounded(t *testing.T) {
	for size, fine := range map[int64]bool{2: true, documentLimit: true, documentLimit + 1: false, 1500 << 20: false, 1 << 50: false} {
		c := &claims{size: size}
		desc := v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromString("x"), Size: size}
		b, err := content.ReadBlob(t.Context(), documents{c}, desc)
		if fine != (err == nil) || fine && int64(len(b)) != size || !fine && !errdefs.IsFailedPrecondition(err) || !c.closed {
			t.Errorf("a configuration of %d bytes: %d read, %v", size, len(b), err)
		}
	}
}

func TestPullsAreBounded(t *testing.T) {
	layers := func(n int) (out []v1.Descriptor) {
		for range n {
			out = append(out, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Size: 1 << 40})
		}
		return append(out, v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Size: 100})
	}
	for _, c := range []struct {
		desc     v1.Descriptor
		children []v1.Descriptor
		fine     bool
	}{
		{v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Size: 1000}, layers(maxLayers), true},
		{v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Size: 1000}, layers(maxLayers + 1), false},
		{v1.Descriptor{MediaType: images.MediaTypeDockerSchema2Manifest, Size: 1000}, layers(60000), false},
		{v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Size: 1 << 40}, nil, true},
		{v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Size: documentLimit + 1}, nil, false},
		{v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Size: documentLimit + 1}, nil, false},
		{v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Size: 1500 << 20}, nil, false},
	} {
		fetched := false
		_, err := bounded(images.HandlerFunc(func(context.Context, v1.Descriptor) ([]v1.Descriptor, error) {
			fetched = true
			return c.children, nil
		})).Handle(t.Context(), c.desc)
		if c.fine != (err == nil) || fetched && c.desc.Size > documentLimit && !c.fine {
			t.Errorf("%s of %d bytes with %d children: fetched %v, %v", c.desc.MediaType, c.desc.Size, len(c.children), fetched, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{`{}`, `null`, `[]`, `{"config":null}`, `{"config":{"Env":null,"Volumes":{"/a":{}},"Healthcheck":{"Test":["CMD","x"],"Interval":1}}}`,
		`{"config":{"Healthcheck":{"Interval":9223372036854775807,"Retries":-1}}}`, strings.Repeat(`{"config":`, 20000), `{"config":{"User":"a:b:c","WorkingDir":"../x"}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		conf, check, err := parseConfig(body)
		if err != nil {
			return
		}
		if _, err := json.Marshal(conf); err != nil {
			t.Errorf("a configuration that was read cannot be written: %v", err)
		}
		_ = fmt.Sprint(check.GetInterval().AsDuration(), check.GetTest())
	})
}

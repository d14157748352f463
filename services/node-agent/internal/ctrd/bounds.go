package ctrd

import (
	"context"
	"errors"
	"fmt"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

const (
	// documentLimit is the size of the largest index, manifest or configuration of an image that is read, in bytes.
	// Registries take manifests of 4 MiB.
	documentLimit = 4 << 20
	// maxLayers is how many layers an image may have: the kernel's overlay takes no more, and Docker neither.
	maxLayers = 127
)

// documents is containerd's content store for this process, which reads nothing of an image but its documents: layers are
// unpacked by containerd. A document that is too large is refused before memory is made for it, whoever wanted to read it.
type documents struct{ content.Store }

// ReaderAt implements content.Provider.
func (d documents) ReaderAt(ctx context.Context, desc v1.Descriptor) (content.ReaderAt, error) {
	ra, err := d.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if n := ra.Size(); n > documentLimit {
		_ = ra.Close() // nothing was read
		return nil, tooLarge(desc, n)
	}
	return ra, nil
}

// withDocuments is the same client with a bounded content store. The connection is handed over: closing the result closes it.
func withDocuments(c *containerd.Client) (*containerd.Client, error) {
	conn, ok := c.Conn().(*grpc.ClientConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("bound its content store: the connection is a %T", c.Conn()), c.Close())
	}
	return containerd.NewWithConn(conn, containerd.WithDefaultNamespace(Namespace),
		containerd.WithServices(containerd.WithContentStore(documents{c.ContentStore()})))
}

func tooLarge(desc v1.Descriptor, size int64) error {
	return fmt.Errorf("%s %s has %d bytes, a node reads at most %d: %w", desc.MediaType, desc.Digest, size, documentLimit, errdefs.ErrFailedPrecondition)
}

// bounded refuses documents that are too large before they are fetched, and images of too many layers before the first of
// them is.
func bounded(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		if !images.IsLayerType(d.MediaType) && d.Size > documentLimit {
			return nil, tooLarge(d, d.Size)
		}
		children, err := h.Handle(ctx, d)
		if err == nil && images.IsManifestType(d.MediaType) {
			err = checkLayers(children)
		}
		return children, err
	})
}

// checkLayers counts the layers among descriptors.
func checkLayers(all []v1.Descriptor) error {
	n := 0
	for _, d := range all {
		if images.IsLayerType(d.MediaType) {
			n++
		}
	}
	if n > maxLayers {
		return fmt.Errorf("it has %d layers, a node takes at most %d: %w", n, maxLayers, errdefs.ErrFailedPrecondition)
	}
	return nil
}

package images

import (
	"archive/tar"
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Annotations by which `skep image load`, containerd and docker find the name of an image inside an OCI archive.
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = "org.opencontainers.image.ref.name"
)

// WriteArchive writes images as one OCI archive, the format of `skep image load`.
func WriteArchive(file string, imgs ...Image) error {
	dir, err := os.MkdirTemp("", "skep-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lp, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("begin the archive %s: %w", file, err)
	}
	for _, img := range imgs {
		ref, err := name.ParseReference(img.Name)
		if err != nil {
			return err
		}
		full := "docker.io/" + ref.Context().RepositoryStr() + ":" + ref.Identifier()
		if err := lp.AppendImage(img.Image, layout.WithAnnotations(map[string]string{containerdName: full, ociRefName: ref.Identifier()})); err != nil {
			return fmt.Errorf("add %s to %s: %w", img.Name, file, err)
		}
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return out.Close()
}

// Push sends images to a plain-HTTP registry under the paths that docker.io has for them: library/ before names without a slash.
// The transport decides how the registry is reached, for instance by a unix socket.
func Push(ctx context.Context, registry string, transport http.RoundTripper, imgs ...Image) error {
	for _, img := range imgs {
		short, err := name.ParseReference(img.Name)
		if err != nil {
			return err
		}
		ref, err := name.ParseReference(registry+"/"+short.Context().RepositoryStr()+":"+short.Identifier(), name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img.Image, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Annotations by which `skep image load`, containerd and docker find the name of an image inside an OCI archive.
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = "org.opencontainers.image.ref.name"
)

// WriteArchive writes images as one archive, which `skep image load`, containerd and `docker load` of any version take: an OCI
// layout with the manifest.json beside it that Docker before 25 goes by. The same images give the same bytes.
func WriteArchive(file string, imgs ...Image) error {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".skep-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lp, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("begin the archive %s: %w", file, err)
	}
	var docker []dockerImage
	for _, img := range imgs {
		ref, err := name.ParseReference(img.Name)
		if err != nil {
			return err
		}
		full := "docker.io/" + ref.Context().RepositoryStr() + ":" + ref.Identifier()
		if err := lp.AppendImage(img.Image, layout.WithAnnotations(map[string]string{containerdName: full, ociRefName: ref.Identifier()})); err != nil {
			return fmt.Errorf("add %s to %s: %w", img.Name, file, err)
		}
		d, err := forDocker(img)
		if err != nil {
			return fmt.Errorf("describe %s for docker load: %w", img.Name, err)
		}
		docker = append(docker, d)
	}
	list, err := json.Marshal(docker)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "manifest.json"), list, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return writeTar(file, dir)
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func forDocker(img Image) (d dockerImage, err error) {
	blob := func(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }
	config, err := img.ConfigName()
	if err != nil {
		return d, err
	}
	layers, err := img.Layers()
	if err != nil {
		return d, err
	}
	d.Config, d.RepoTags = blob(config), []string{img.Name}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return d, err
		}
		d.Layers = append(d.Layers, blob(h))
	}
	return d, nil
}

// writeTar puts a folder into an archive, whole or not at all. Its names are in order, and nothing tells when and by whom it
// was made.
func writeTar(file, dir string) error {
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(out.Name()) // of one that was renamed there is none
	defer out.Close()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(dir, func(from string, e fs.DirEntry, err error) error {
		if err != nil || from == dir {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: strings.TrimPrefix(from, dir+"/"), Mode: 0o644, ModTime: created.Time, Format: tar.FormatPAX, Typeflag: tar.TypeReg, Size: st.Size()}
		if e.IsDir() {
			h.Name, h.Mode, h.Typeflag, h.Size = h.Name+"/", 0o755, tar.TypeDir, 0
		}
		if err := w.WriteHeader(h); err != nil || e.IsDir() {
			return err
		}
		in, err := os.Open(from)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(w, in)
		return err
	})
	if err == nil {
		err = errors.Join(w.Close(), out.Chmod(0o644), out.Close())
	}
	if err == nil {
		err = os.Rename(out.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
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

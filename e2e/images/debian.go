package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// debian is a file system made of Debian's packages: unpacked, not configured. It is the slow part of an image, so it is kept.
type debian struct {
	name     string
	recipe   string // changes whenever the file system must be made anew: it is part of the cache's file name
	packages string // with commas between
	drop     []string
	keep     []string    // of what is dropped from other images
	own      func(files) // what stands in place of the packages' files
	// move renames what lies below a folder, and puts files in place of the symbolic links there.
	moveFrom, moveTo string
}

// dropped from every image: half of the packages' size, and nothing a server reads.
var dropped = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/perl/", "usr/lib/x86_64-linux-gnu/perl",
	"usr/share/i18n/", "usr/share/zoneinfo/", "usr/share/common-licenses/", "var/lib/apt/", "var/cache/", "var/lib/dpkg/", "dev/", "usr/share/bash-completion/"}

// layer returns the file system, from the cache or made with mmdebstrap.
func (d debian) layer(ctx context.Context, in Inputs) (v1.Layer, error) {
	file, err := d.file(ctx, in)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("read the cached file system %s: %w; remove it to have it made anew", file, err)
	}
	return l, nil
}

func (d debian) file(ctx context.Context, in Inputs) (string, error) {
	if in.Suite == "" {
		return "", fmt.Errorf("no Debian suite given for %s", d.name)
	}
	out := filepath.Join(in.Cache, d.name+"-"+in.Suite+"-"+d.recipe+".tar.gz")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(in.Cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(in.Cache, "."+d.name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	raw, layer := filepath.Join(tmp, "raw.tar"), filepath.Join(tmp, "layer.tar")
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=extract", "--include="+d.packages, in.Suite, raw)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch Debian's packages for %s with mmdebstrap: %w: can this machine reach the mirrors that apt uses (/etc/apt/sources.list*)?\n%s", d.name, err, msg)
	}
	if err := d.repack(raw, layer); err != nil {
		return "", fmt.Errorf("repack Debian's packages for %s: %w", d.name, err)
	}
	if msg, err := exec.CommandContext(ctx, "gzip", "-n", "-6", layer).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compress the file system of %s: %w\n%s", d.name, err, msg)
	}
	return out, os.Rename(layer+".gz", out)
}

// repack copies the packages' tar without what is dropped, then adds our own files.
func (d debian) repack(from, to string) error {
	own := files{}
	own.base()
	d.own(own)
	own.parents()
	var linked files
	if d.moveFrom != "" {
		var err error
		if linked, err = followLinks(from, d.moveFrom, d.moveTo); err != nil {
			return err
		}
		maps.Copy(own, linked)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()

	drop := slices.Concat(dropped, d.drop)
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		if d.moveFrom != "" {
			if rest, ok := strings.CutPrefix(h.Name, d.moveFrom); ok {
				h.Name = d.moveTo + rest
			}
		}
		name := strings.TrimSuffix(h.Name, "/")
		has := func(prefixes []string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(h.Name, p) })
		}
		if _, ours := own[name]; ours || name == "" || has(drop) && !has(d.keep) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if _, err := io.Copy(w, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	raw, err := own.tar()
	if err != nil {
		return err
	}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

// followLinks finds the symbolic links below a folder of a tar that lead to files outside of it, and returns the files' content under
// the names that the links will have: a program that copies the folder elsewhere then copies all of it.
func followLinks(tarFile, folder, to string) (files, error) {
	targets := map[string][]string{} // a file of the tar → names to give it
	err := eachEntry(tarFile, func(h *tar.Header, _ io.Reader) error {
		rest, below := strings.CutPrefix(h.Name, folder)
		if !below || h.Typeflag != tar.TypeSymlink {
			return nil
		}
		target := strings.TrimPrefix(h.Linkname, "/")
		if !path.IsAbs(h.Linkname) {
			target = path.Join(path.Dir(h.Name), h.Linkname)
		}
		targets[target] = append(targets[target], to+rest)
		return nil
	})
	if err != nil {
		return nil, err
	}
	found := files{}
	err = eachEntry(tarFile, func(h *tar.Header, r io.Reader) error {
		if len(targets[h.Name]) == 0 || h.Typeflag != tar.TypeReg {
			return nil
		}
		b, err := io.ReadAll(r)
		for _, name := range targets[h.Name] {
			found.put(name, b, h.Mode)
		}
		return err
	})
	return found, err
}

func eachEntry(tarFile string, f func(*tar.Header, io.Reader) error) error {
	in, err := os.Open(tarFile)
	if err != nil {
		return err
	}
	defer in.Close()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		if err := f(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

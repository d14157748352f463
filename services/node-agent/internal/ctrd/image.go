package ctrd

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/inroot"
	"skep.dev/services/node-agent/internal/registry"
)

const (
	snapshotter = "overlayfs"
	// labelTag keeps the tag a pinned image was asked for by, so lists can show it.
	labelTag = "dev.skep.tag"
)

// Image is one that is here and unpacked.
type Image struct {
	Name   string
	Target digest.Digest
	Config v1.ImageConfig
	Chain  string               // the key of its topmost layer's snapshot
	Health *skepv1.HealthConfig // its HEALTHCHECK, nil = none

	mu            sync.Mutex
	filesRead     bool
	passwd, group []byte
}

// Images is the node's image store.
type Images struct {
	client *containerd.Client
	reg    registry.Config
	log    *zap.Logger
	match  platforms.MatchComparer
	pulled func(took time.Duration, err error)

	mu    sync.Mutex
	known map[digest.Digest]*Image // unpacked ones, by the target of the reference
	pulls map[string]*pull
}

func newImages(c *containerd.Client, reg registry.Config, log *zap.Logger, pulled func(time.Duration, error)) *Images {
	return &Images{client: c, reg: reg, log: log, match: platforms.Default(), known: map[digest.Digest]*Image{}, pulls: map[string]*pull{}, pulled: pulled}
}

// parsed is a user's image reference.
type parsed struct {
	repo   string // docker.io/library/busybox
	tag    string
	digest digest.Digest
}

func parseRef(ref string) (parsed, error) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return parsed{}, fmt.Errorf("invalid image reference %q: %w", ref, err)
	}
	p := parsed{repo: n.Name()}
	if t, ok := n.(reference.Tagged); ok {
		p.tag = t.Tag()
	}
	if d, ok := n.(reference.Digested); ok {
		p.digest = d.Digest()
	}
	if p.tag == "" && p.digest == "" {
		p.tag = "latest"
	}
	return p, nil
}

// name is the key in containerd's image store.
func (p parsed) name() string {
	if p.digest != "" {
		return p.repo + "@" + p.digest.String()
	}
	return p.repo + ":" + p.tag
}

func (p parsed) familiar() string {
	n, err := reference.ParseNormalizedNamed(p.repo)
	if err != nil {
		return p.repo
	}
	f := reference.FamiliarName(n)
	if p.tag != "" {
		return f + ":" + p.tag
	}
	return f
}

// Ensure makes the image present and unpacked: by its digest without the network when it is here. Credentials are asked
// for when it has to be pulled, so that what is here starts without managers.
func (s *Images) Ensure(ctx context.Context, ref string, credentials func(context.Context) (*skepv1.DeliveredValue, error), progress func(string)) (*Image, error) {
	p, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	if p.digest != "" {
		if img := s.cached(p.digest); img != nil {
			return img, nil
		}
		if img, err := s.local(ctx, p); err == nil {
			if err := s.pin(ctx, p, img); err != nil {
				return nil, classify(ref, err)
			}
			return s.ready(ctx, img)
		} else if !errdefs.IsNotFound(err) {
			return nil, classify(ref, err)
		}
	}
	img, err := s.pullWith(ctx, p, credentials, progress)
	if err == nil {
		return img, nil
	}
	if p.digest == "" && ctx.Err() == nil {
		// A tag nobody could look up, such as that of an image loaded by hand: what is here will do.
		if have, lerr := s.local(ctx, p); lerr == nil {
			return s.ready(ctx, have)
		}
	}
	return nil, err
}

func (s *Images) cached(d digest.Digest) *Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[d]
}

// local finds the image in the store with all its content, under whatever name.
func (s *Images) local(ctx context.Context, p parsed) (images.Image, error) {
	var found []images.Image
	if p.digest != "" {
		list, err := s.client.ImageService().List(ctx, "target.digest=="+p.digest.String())
		if err != nil {
			return images.Image{}, err
		}
		found = list
	} else {
		img, err := s.client.ImageService().Get(ctx, p.name())
		if err != nil {
			return images.Image{}, err
		}
		found = []images.Image{img}
	}
	for _, img := range found {
		ok, _, _, _, err := images.Check(ctx, s.client.ContentStore(), img.Target, s.match)
		if err == nil && ok {
			return img, nil
		}
	}
	return images.Image{}, fmt.Errorf("image %s: %w", p.name(), errdefs.ErrNotFound)
}

// pin gives an image that is here under a tag a name of its own: tags move on, and what tasks run must not go with them.
func (s *Images) pin(ctx context.Context, p parsed, img images.Image) error {
	if img.Name == p.name() {
		return nil
	}
	rec := images.Image{Name: p.name(), Target: img.Target, Labels: map[string]string{}}
	if p.tag != "" {
		rec.Labels[labelTag] = p.tag
	}
	if _, err := s.client.ImageService().Create(ctx, rec); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("keep image %s: %w", p.name(), err)
	}
	return nil
}

// ready unpacks the image if need be and reads its configuration.
func (s *Images) ready(ctx context.Context, rec images.Image) (*Image, error) {
	if img := s.cached(rec.Target.Digest); img != nil {
		return img, nil
	}
	ci := containerd.NewImageWithPlatform(s.client, rec, s.match)
	manifest, err := images.Manifest(ctx, s.client.ContentStore(), rec.Target, s.match)
	if err != nil {
		return nil, classify(rec.Name, fmt.Errorf("read image %s: %w", rec.Name, err))
	}
	if err := checkLayers(manifest.Layers); err != nil {
		return nil, classify(rec.Name, err)
	}
	if err := ci.Unpack(ctx, snapshotter); err != nil {
		return nil, classify(rec.Name, fmt.Errorf("unpack image %s: %w", rec.Name, err))
	}
	diffs, err := ci.RootFS(ctx)
	if err != nil {
		return nil, classify(rec.Name, fmt.Errorf("read image %s: %w", rec.Name, err))
	}
	desc, err := ci.Config(ctx)
	if err != nil {
		return nil, classify(rec.Name, fmt.Errorf("read image %s: %w", rec.Name, err))
	}
	body, err := content.ReadBlob(ctx, s.client.ContentStore(), desc)
	if err != nil {
		return nil, classify(rec.Name, fmt.Errorf("read image %s: %w", rec.Name, err))
	}
	conf, check, err := parseConfig(body)
	if err != nil {
		return nil, fmt.Errorf("read the configuration of image %s: %w", rec.Name, err)
	}
	img := &Image{Name: rec.Name, Target: rec.Target.Digest, Config: conf, Chain: identity.ChainID(diffs).String(), Health: check}
	s.mu.Lock()
	s.known[rec.Target.Digest] = img
	s.mu.Unlock()
	return img, nil
}

// forget drops what is remembered of images that may be gone.
func (s *Images) forget() {
	s.mu.Lock()
	s.known = map[digest.Digest]*Image{}
	s.mu.Unlock()
}

// accounts reads the image's own /etc/passwd and /etc/group, once, from a container's fresh root.
func (i *Image) accounts(ctx context.Context, root []mount.Mount) (passwd, group []byte, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.filesRead {
		return i.passwd, i.group, nil
	}
	err = mount.WithTempMount(ctx, root, func(dir string) error {
		for name, dst := range map[string]*[]byte{"/etc/passwd": &i.passwd, "/etc/group": &i.group} {
			var err error
			if *dst, err = inroot.Read(dir, name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the users of image %s: %w", i.Name, err)
	}
	i.filesRead = true
	return i.passwd, i.group, nil
}

// Listed is one line of `skep image ls`.
type Listed struct {
	Name   string
	Digest digest.Digest
	Config digest.Digest
	Size   int64
	InUse  bool
	Image  images.Image
}

// List returns the images, one line for each name; a pinned copy of a named one is not repeated.
func (s *Images) List(ctx context.Context) ([]Listed, error) {
	all, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	named, tags := map[string]bool{}, map[string]bool{}
	for _, img := range all {
		if !strings.Contains(img.Name, "@") {
			p, err := parseRef(img.Name)
			if err == nil {
				named[p.repo+"@"+img.Target.Digest.String()] = true
				tags[p.repo+":"+p.tag] = true
			}
		}
	}
	var out []Listed
	for _, img := range all {
		if named[img.Name] {
			continue
		}
		l := Listed{Name: img.Name, Digest: img.Target.Digest, Image: img}
		if p, err := parseRef(img.Name); err == nil {
			if p.digest != "" {
				p.tag = img.Labels[labelTag]
				if p.tag == "" || tags[p.repo+":"+p.tag] { // or the tag means another one by now
					p.tag = "<none>"
				}
			}
			l.Name = p.familiar()
		}
		ci := containerd.NewImageWithPlatform(s.client, img, s.match)
		if c, err := ci.Config(ctx); err == nil {
			l.Config = c.Digest
		}
		if n, err := ci.Usage(ctx, containerd.WithSnapshotUsage()); err == nil {
			l.Size = n
		}
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// Find returns every record that a user's reference or (short) id means.
func (s *Images) Find(ctx context.Context, ref string) ([]images.Image, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var target digest.Digest
	p, perr := parseRef(ref)
	short := strings.TrimPrefix(ref, "sha256:")
	for _, l := range all {
		if perr == nil && (l.Image.Name == p.name() || p.digest == "" && l.Name == p.familiar()) ||
			len(short) >= 4 && (strings.HasPrefix(l.Config.Encoded(), short) || strings.HasPrefix(l.Digest.Encoded(), short)) {
			if l.Image.Name == p.name() && p.digest == "" {
				// One name of it: only that is meant, and the pinned copies behind it if no other name holds them.
				target = l.Digest
				break
			}
			target = l.Digest
		}
	}
	if target == "" {
		return nil, fmt.Errorf("no such image: %s: %w", ref, errdefs.ErrNotFound)
	}
	recs, err := s.client.ImageService().List(ctx, "target.digest=="+target.String())
	if err != nil {
		return nil, fmt.Errorf("find image %s: %w", ref, err)
	}
	if perr == nil && p.digest == "" {
		var tagged []images.Image
		others := 0
		for _, r := range recs {
			if r.Name == p.name() {
				tagged = append(tagged, r)
			} else if !strings.Contains(r.Name, "@") {
				others++
			}
		}
		if len(tagged) > 0 && others > 0 {
			return tagged, nil // untag only
		}
	}
	return recs, nil
}

// Remove deletes records; content and snapshots go with the last of them.
func (s *Images) Remove(ctx context.Context, recs []images.Image) ([]string, error) {
	defer s.forget()
	var gone []string
	for i, r := range recs {
		var opts []images.DeleteOpt
		if i == len(recs)-1 {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := s.client.ImageService().Delete(ctx, r.Name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return gone, fmt.Errorf("remove image %s: %w", r.Name, err)
		}
		gone = append(gone, r.Name)
	}
	return gone, nil
}

// withLease runs f under a lease of its own, so nothing it makes is collected before something holds it.
func withLease(ctx context.Context, c *containerd.Client, id string, f func(context.Context) error) error {
	l, err := c.LeasesService().Create(ctx, leases.WithID(id))
	if errdefs.IsAlreadyExists(err) {
		l, err = leases.Lease{ID: id}, nil
	}
	if err != nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	ferr := f(leases.WithLease(ctx, l.ID))
	dctx := context.WithoutCancel(ctx)
	if err := c.LeasesService().Delete(dctx, l); err != nil && !errdefs.IsNotFound(err) && ferr == nil {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	return ferr
}

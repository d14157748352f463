package ctrd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"skep.dev/services/node-agent/internal/registry"
	"skep.dev/services/node-agent/internal/task"
)

// pull is one in progress, shared by all who want the same.
type pull struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int

	img *Image
	err error

	mu     sync.Mutex
	text   string
	update []func(string)
}

func (p *pull) say(text string) {
	p.mu.Lock()
	if text == p.text {
		p.mu.Unlock()
		return
	}
	p.text = text
	fs := slices.Clone(p.update)
	p.mu.Unlock()
	for _, f := range fs {
		f(text)
	}
}

// Pull fetches and unpacks. Concurrent pulls of one image with the same credentials are one; it ends when nobody waits for
// it any more.
func (s *Images) Pull(ctx context.Context, p parsed, a registry.Auth, progress func(string)) (*Image, error) {
	key := fmt.Sprintf("%s %s %s", p.name(), p.tag, a.Object)
	s.mu.Lock()
	job := s.pulls[key]
	if job == nil {
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		job = &pull{done: make(chan struct{}), cancel: cancel}
		s.pulls[key] = job
		go func() {
			began := time.Now()
			job.img, job.err = s.fetch(pctx, p, a, job.say)
			if s.pulled != nil {
				s.pulled(time.Since(began), job.err)
			}
			s.mu.Lock()
			if s.pulls[key] == job {
				delete(s.pulls, key)
			}
			s.mu.Unlock()
			cancel()
			close(job.done)
		}()
	}
	job.waiters++
	s.mu.Unlock()
	if progress != nil {
		job.mu.Lock()
		job.update = append(job.update, progress)
		job.mu.Unlock()
	}
	select {
	case <-job.done:
		return job.img, job.err
	case <-ctx.Done():
		s.mu.Lock()
		if job.waiters--; job.waiters == 0 {
			job.cancel()
			if s.pulls[key] == job {
				delete(s.pulls, key)
			}
		}
		s.mu.Unlock()
		return nil, ctx.Err()
	}
}

func (s *Images) fetch(ctx context.Context, p parsed, a registry.Auth, say func(string)) (*Image, error) {
	say("pulling " + p.familiar())
	labels := map[string]string{}
	if p.digest != "" && p.tag != "" {
		labels[labelTag] = p.tag
	}
	var sizes sync.Map
	count := images.HandlerFunc(func(_ context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		if images.IsLayerType(d.MediaType) {
			sizes.Store(d.Digest, d.Size)
		}
		return nil, nil
	})
	ctx, end := context.WithCancelCause(ctx)
	stop := func() { end(nil) }
	defer stop()
	go s.follow(ctx, p, &sizes, say, end)
	ci, err := s.client.Pull(ctx, p.name(),
		containerd.WithResolver(s.reg.Resolver(a)), containerd.WithPlatformMatcher(s.match),
		containerd.WithPullUnpack, containerd.WithPullSnapshotter(snapshotter), containerd.WithPullLabels(labels),
		containerd.WithImageHandler(count), containerd.WithImageHandlerWrapper(bounded))
	if why := context.Cause(ctx); err != nil && errors.Is(why, errStalled) {
		return nil, why
	}
	if err != nil {
		if text := s.otherPlatforms(ctx, p, a, err); text != "" {
			return nil, errors.New(text)
		}
		return nil, classify(p.familiar(), err)
	}
	stop()
	return s.ready(context.WithoutCancel(ctx), ci.Metadata())
}

// follow turns the growing of layers into words, and ends a pull whose registry sends nothing any more.
func (s *Images) follow(ctx context.Context, p parsed, sizes *sync.Map, say func(string), end context.CancelCauseFunc) {
	idle := stall{patience: pullPatience}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		active, err := s.client.ContentStore().ListStatuses(ctx)
		if err != nil {
			continue
		}
		var total, done, received int64
		parts, waits := 0, true // until a manifest came, all is owed
		at := map[string]content.Status{}
		for _, st := range active {
			at[st.Ref] = st
		}
		sizes.Range(func(d, n any) bool {
			if parts++; parts == 1 {
				waits = false
			}
			total += n.(int64)
			for ref, st := range at {
				if strings.Contains(ref, fmt.Sprint(d)) {
					done += st.Offset
					received += st.Offset
					waits = waits || st.Offset < n.(int64)
					return true
				}
			}
			done += n.(int64) // written already, or not begun: cannot be told apart cheaply
			return true
		})
		if idle.look(time.Now(), received, parts, waits) {
			end(stalled(p, idle.patience))
			return
		}
		if total > 0 {
			say(fmt.Sprintf("pulling %s: %s of %s", p.familiar(), task.Bytes(done), task.Bytes(total)))
		}
	}
}

// otherPlatforms says which platforms an image has when the pull failed for lack of ours.
func (s *Images) otherPlatforms(ctx context.Context, p parsed, a registry.Auth, err error) string {
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "platform") && !strings.Contains(err.Error(), "manifest") {
		return ""
	}
	_, list, _, rerr := s.Remote(ctx, p, a)
	if rerr != nil || len(list) == 0 {
		return ""
	}
	return noPlatform(p.familiar(), s.match, list)
}

func noPlatform(name string, match platforms.MatchComparer, have []v1.Platform) string {
	var names []string
	for _, h := range have {
		if match.Match(h) {
			return ""
		}
		names = append(names, platforms.Format(h))
	}
	slices.Sort(names)
	return fmt.Sprintf("no image for %s in %s: it has %s", platforms.Format(platforms.Normalize(platforms.DefaultSpec())), name, strings.Join(slices.Compact(names), ", "))
}

// Remote asks the registry which digest a reference has, and for which platforms.
func (s *Images) Remote(ctx context.Context, p parsed, a registry.Auth) (v1.Descriptor, []v1.Platform, reader, error) {
	r := s.reg.Resolver(a)
	name, desc, err := r.Resolve(ctx, p.name())
	if err != nil {
		return desc, nil, nil, classify(p.familiar(), err)
	}
	f, err := r.Fetcher(ctx, name)
	if err != nil {
		return desc, nil, nil, classify(p.familiar(), err)
	}
	read := once(func(d v1.Descriptor) ([]byte, error) {
		rc, err := f.Fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		return io.ReadAll(io.LimitReader(rc, 8<<20))
	})
	list, err := platformsOf(ctx, desc, read)
	if err != nil {
		return desc, nil, nil, classify(p.familiar(), err)
	}
	return desc, list, read, nil
}

func platformsOf(ctx context.Context, desc v1.Descriptor, read reader) ([]v1.Platform, error) {
	body, err := read(desc)
	if err != nil {
		return nil, err
	}
	if images.IsIndexType(desc.MediaType) {
		var idx v1.Index
		if err := json.Unmarshal(body, &idx); err != nil {
			return nil, fmt.Errorf("read index: %w", err)
		}
		seen := map[string]v1.Platform{}
		for _, m := range idx.Manifests {
			switch {
			case m.Platform != nil && m.Platform.OS != "unknown" && m.Platform.OS != "":
				p := platforms.Normalize(*m.Platform)
				seen[platforms.Format(p)] = p
			case m.Platform == nil && images.IsManifestType(m.MediaType):
				list, err := platformsOf(ctx, m, read)
				if err != nil {
					return nil, err
				}
				for _, p := range list {
					seen[platforms.Format(p)] = p
				}
			}
		}
		var out []v1.Platform
		for _, k := range slices.Sorted(maps.Keys(seen)) {
			out = append(out, seen[k])
		}
		return out, nil
	}
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	conf, err := read(m.Config)
	if err != nil {
		return nil, err
	}
	var img v1.Image
	if err := json.Unmarshal(conf, &img); err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	return []v1.Platform{platforms.Normalize(img.Platform)}, nil
}

// Resolve answers skep.v1.api.image.resolve: the registry first, then what is here.
func (s *Images) Resolve(ctx context.Context, ref string, a registry.Auth, patience time.Duration) (Resolved, error) {
	p, err := parseRef(ref)
	if err != nil {
		return Resolved{}, err
	}
	rctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	desc, list, read, rerr := s.Remote(rctx, p, a)
	if rerr != nil {
		img, err := s.local(ctx, p)
		if err != nil {
			return Resolved{}, rerr
		}
		desc = img.Target
		read = func(d v1.Descriptor) ([]byte, error) { return content.ReadBlob(ctx, s.client.ContentStore(), d) }
		list, err = platformsOf(ctx, desc, read)
		if err != nil {
			// An index whose other platforms are not here still has ours.
			list = []v1.Platform{platforms.Normalize(platforms.DefaultSpec())}
		}
	}
	p.digest = desc.Digest
	out := p.repo
	if p.tag != "" {
		out += ":" + p.tag
	}
	return Resolved{out + "@" + p.digest.String(), list, declaredBy(desc, s.match, read)}, nil
}

// Load imports an OCI or docker archive.
func (s *Images) Load(ctx context.Context, r io.Reader) ([]string, error) {
	var names []string
	err := withLease(ctx, s.client, "load-"+fmt.Sprint(time.Now().UnixNano()), func(ctx context.Context) error {
		imgs, err := s.client.Import(ctx, r, containerd.WithImportPlatform(s.match))
		if err != nil {
			return fmt.Errorf("read image archive: %w", err)
		}
		for _, img := range imgs {
			s.mu.Lock()
			delete(s.known, img.Target.Digest)
			s.mu.Unlock()
			if _, err := s.ready(ctx, img); err != nil {
				return err
			}
			name := img.Name
			if p, err := parseRef(name); err == nil {
				name = p.familiar()
			}
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, classify("archive", err)
	}
	if len(names) == 0 {
		return nil, errors.New("the archive holds no named image: save it with a name (docker save NAME)")
	}
	return names, nil
}

// classify puts a failure into words and tells what time may cure from what it never will.
func classify(ref string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case err == nil:
		return nil
	case task.IsTemporary(err):
		return err
	case strings.Contains(err.Error(), "no space left on device"):
		return task.NoSpace(fmt.Errorf("image %s: no space left on this node's disk: %w", ref, err))
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return fmt.Errorf("image %s: pull access denied, the repository does not exist or needs a login (skep login, --with-registry-auth)", ref)
	case errors.As(err, &status) && status.StatusCode >= 400 && status.StatusCode < 500 && status.StatusCode != http.StatusTooManyRequests && status.StatusCode != http.StatusRequestTimeout:
		return fmt.Errorf("image %s: the registry refuses: %s", ref, status.Status)
	case errdefs.IsNotFound(err):
		return fmt.Errorf("no such image: %s", ref)
	case errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("image %s: %w", ref, err)
	}
	if t := trouble(err); task.IsTemporary(t) && strings.Contains(err.Error(), "containerd.sock") {
		return t
	}
	return task.Temporary(fmt.Errorf("image %s: %w", ref, err))
}

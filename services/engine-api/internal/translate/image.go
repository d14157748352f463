package translate

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"

	skepv1 "skep.dev/proto/skep/v1"
)

// none is the name of an image that has none.
const none = "<none>"

// SplitTag takes the tag off a name.
func SplitTag(name string) (repo, tag string) {
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		return name[:i], name[i+1:]
	}
	return name, ""
}

// Images are the images of a node, each once with all its names, the newest first.
func Images(all []*skepv1.Image) []image.Summary {
	by := map[string][]*skepv1.Image{}
	var ids []string
	for _, img := range all {
		if by[img.GetId()] == nil {
			ids = append(ids, img.GetId())
		}
		by[img.GetId()] = append(by[img.GetId()], img)
	}
	var out []image.Summary
	for _, id := range ids {
		tags, digests := namesOf(by[id])
		first := by[id][0]
		s := image.Summary{Containers: -1, Created: first.GetCreatedAt().GetSeconds(), ID: id, Labels: map[string]string{}, RepoTags: tags, RepoDigests: digests, SharedSize: -1, Size: first.GetSize()}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b image.Summary) int { return cmp.Compare(b.Created, a.Created) })
	return out
}

func namesOf(same []*skepv1.Image) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, img := range same {
		if img.GetName() == none || img.GetName() == "" {
			continue
		}
		name, digest, pinned := strings.Cut(img.GetName(), "@")
		repo, _ := SplitTag(name)
		if !pinned {
			tags, digest = append(tags, name), img.GetDigest()
		}
		if d := repo + "@" + digest; digest != "" && !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	return tags, digests
}

// ImageToDocker is an image with all its names. What its configuration says stays with the node.
func ImageToDocker(same []*skepv1.Image) image.InspectResponse {
	tags, digests := namesOf(same)
	first := same[0]
	return image.InspectResponse{ID: first.GetId(), RepoTags: tags, RepoDigests: digests, Created: first.GetCreatedAt().AsTime().UTC().Format(time.RFC3339Nano), Os: "linux", Size: first.GetSize(),
		RootFS: image.RootFS{Type: "layers"}}
}

// MatchesReference: one of an image's names fits one of the patterns, with or without its tag.
func MatchesReference(d image.Summary, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return slices.ContainsFunc(d.RepoTags, func(tag string) bool {
			repo, _ := SplitTag(tag)
			whole, _ := path.Match(p, tag) // what is no pattern fits nothing
			part, _ := path.Match(p, repo)
			return whole || part
		})
	})
}

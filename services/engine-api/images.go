package engine

import (
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/image"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

// shortestID is how much of an image's id names it.
const shortestID = 4

// isImage reports whether a reference names an image: name with tag or without, id or its beginning, digest.
func isImage(img *skepv1.Image, ref string) bool {
	name := img.GetName()
	if ref == name || ref+":latest" == name || ref == img.GetDigest() || ref == img.GetId() {
		return true
	}
	if repo, digest, ok := strings.Cut(ref, "@"); ok && digest == img.GetDigest() {
		have, _ := translate.SplitTag(name)
		want, _ := translate.SplitTag(repo)
		return have == want
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) < shortestID || strings.Trim(hex, "0123456789abcdef") != "" {
		return false
	}
	return strings.HasPrefix(img.GetId(), "sha256:"+hex) || strings.HasPrefix(img.GetDigest(), "sha256:"+hex)
}

// imageFilters are those of docker images; what an image's configuration says is not known here.
var imageFilters = []string{"dangling", "reference"}

func (s *Service) listImages(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters(imageFilters...)
	if err != nil {
		return err
	}
	dangling, filtered, err := f.TakeBool("dangling")
	if err != nil {
		return err
	}
	n, err := s.agent()
	if err != nil {
		return err
	}
	all, err := n.Images(r.Context())
	if err != nil {
		return err
	}
	out := []image.Summary{}
	for _, d := range translate.Images(all) {
		if filtered && dangling != (len(d.RepoTags) == 0) || f.Has("reference") && !translate.MatchesReference(d, f["reference"]) {
			continue
		}
		out = append(out, d)
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

func (s *Service) inspectImage(w http.ResponseWriter, r *wire.Request) error {
	ref := r.Var("id")
	if s.cfg.Node == nil { // so that docker inspect tries the next kind
		return wire.NotFound("No such image: %s", ref)
	}
	n, err := s.agent()
	if err != nil {
		return err
	}
	all, err := n.Images(r.Context())
	if err != nil {
		return err
	}
	var found []*skepv1.Image
	for _, img := range all {
		if isImage(img, ref) {
			found = append(found, img)
		}
	}
	if len(found) == 0 {
		return wire.NotFound("No such image: %s", ref)
	}
	for _, img := range found {
		if img.GetId() != found[0].GetId() {
			return wire.Invalid("image %s is ambiguous: it begins the ids of several", ref)
		}
	}
	for _, img := range all { // its other names
		if img.GetId() == found[0].GetId() && !isImage(img, ref) {
			found = append(found, img)
		}
	}
	return wire.WriteJSON(w, http.StatusOK, translate.ImageToDocker(found))
}

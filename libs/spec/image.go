package spec

import (
	"github.com/distribution/reference"

	"skep.dev/libs/fault"
)

// NormalizeImage returns the familiar form of an image reference with its tag or digest spelled out: httpd becomes
// httpd:latest, docker.io/library/httpd:2 becomes httpd:2, and a digest stays.
func NormalizeImage(image string) (string, error) {
	ref, err := parseImage(image)
	if err != nil {
		return "", err
	}
	return reference.FamiliarString(reference.TagNameOnly(ref)), nil
}

// FullImage is the reference as a registry knows it: docker.io/library/httpd:latest.
func FullImage(image string) (string, error) {
	ref, err := parseImage(image)
	if err != nil {
		return "", err
	}
	return reference.TagNameOnly(ref).String(), nil
}

// RegistryOf is the host of an image's registry as references name it: docker.io where they name none.
func RegistryOf(image string) (string, error) {
	ref, err := parseImage(image)
	if err != nil {
		return "", err
	}
	return reference.Domain(ref), nil
}

// SameRepository reports whether two images differ in their tags and digests at most.
func SameRepository(a, b string) bool {
	x, errA := parseImage(a)
	y, errB := parseImage(b)
	return errA == nil && errB == nil && x.Name() == y.Name()
}

// HasDigest reports whether the reference is pinned already.
func HasDigest(image string) bool {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return false
	}
	_, ok := ref.(reference.Digested)
	return ok
}

func parseImage(image string) (reference.Named, error) {
	if image == "" {
		return nil, fault.Invalid("ContainerSpec: image reference must be provided")
	}
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, fault.Invalid("ContainerSpec: %q is not a valid repository/tag", image)
	}
	return ref, nil
}

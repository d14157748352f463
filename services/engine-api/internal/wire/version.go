package wire

import (
	"regexp"
	"strconv"
	"strings"
)

// Version is one of the API's, such as 1.41.
type Version struct{ Major, Minor int }

// The versions that are spoken. The newest is that of the types in github.com/moby/moby/api; clients pick the lower one of theirs and
// this. The oldest is what agents of management tools pin.
var (
	Oldest = Version{1, 24}
	Newest = Version{1, 56}
)

func (v Version) String() string { return strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor) }

// Before reports whether v is older than 1.minor.
func (v Version) Before(minor int) bool { return v.less(Version{1, minor}) }

func (v Version) less(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// versionPrefix is how a path may begin. Numbers of more digits are nobody's version.
var versionPrefix = regexp.MustCompile(`^/v([0-9]{1,4})\.([0-9]{1,4})(/.*)?$`)

// cutVersion takes the version off an escaped path. Without one the newest is meant.
func cutVersion(path string) (Version, string, error) {
	m := versionPrefix.FindStringSubmatch(path)
	if m == nil {
		return Newest, path, nil
	}
	var v Version
	v.Major, _ = strconv.Atoi(m[1]) // at most four digits
	v.Minor, _ = strconv.Atoi(m[2])
	switch {
	case v.less(Oldest):
		return v, "", Invalid("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, Oldest)
	case Newest.less(v):
		return v, "", Invalid("client version %s is too new. Maximum supported API version is %s", v, Newest)
	}
	return v, "/" + strings.TrimPrefix(m[3], "/"), nil
}

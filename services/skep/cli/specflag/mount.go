package specflag

import (
	"strconv"
	"strings"

	skepv1 "skep.dev/proto/skep/v1"
)

var mountTypes = map[string]skepv1.Mount_Type{
	"volume": skepv1.Mount_TYPE_VOLUME, "bind": skepv1.Mount_TYPE_BIND, "tmpfs": skepv1.Mount_TYPE_TMPFS,
	"cluster": skepv1.Mount_TYPE_CLUSTER, "image": skepv1.Mount_TYPE_IMAGE, "npipe": skepv1.Mount_TYPE_NPIPE,
}

// MountType is the word --mount uses for a type.
func MountType(t skepv1.Mount_Type) string {
	for word, v := range mountTypes {
		if v == t {
			return word
		}
	}
	return t.String()
}

// ParseMount reads one --mount value: comma separated key=value pairs, quoted as CSV where a value holds a comma.
func ParseMount(s string) (*skepv1.Mount, error) {
	parts, err := fields(s)
	if err != nil {
		return nil, invalidf("invalid mount %q: %v", s, err)
	}
	m := &skepv1.Mount{}
	used := map[string]string{} // option family → the key that used it
	for _, f := range parts {
		key, val, hasVal := strings.Cut(f, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		flag := key == "readonly" || key == "ro" || key == "volume-nocopy" || key == "bind-create-src" || key == "bind-wait"
		if !hasVal && !flag {
			if known(key) {
				return nil, invalidf("invalid field '%s' must be a key=value pair", f)
			}
			return nil, invalidf("unknown option '%s' in '%s'", key, f)
		}
		yes := true
		if hasVal && flag {
			if yes, err = strconv.ParseBool(val); err != nil {
				return nil, invalidf("invalid value for %s: %s", key, val)
			}
		}
		if i := strings.IndexByte(key, '-'); i > 0 {
			used[key[:i]] = key
		}
		switch key {
		case "type":
			t, ok := mountTypes[strings.ToLower(val)]
			if !ok {
				return nil, invalidf("invalid value for type: %s: it must be volume, bind, tmpfs, cluster, image or npipe", val)
			}
			m.Type = t
		case "source", "src":
			m.Source = val
		case "target", "dst", "destination":
			m.Target = val
		case "readonly", "ro":
			m.ReadOnly = yes
		case "consistency":
			m.Consistency = strings.ToLower(val)
		case "bind-propagation":
			p := strings.ToLower(val)
			switch p {
			case "rprivate", "private", "rshared", "shared", "rslave", "slave":
				m.BindPropagation = p
			default:
				return nil, invalidf("invalid value for %s: %s", key, val)
			}
		case "bind-nonrecursive":
			return nil, invalidf("bind-nonrecursive is deprecated, use bind-recursive=disabled instead")
		case "bind-recursive":
			switch val {
			case "enabled", "disabled", "writable", "readonly":
				m.BindRecursive = val
			default:
				return nil, invalidf(`invalid value for %s: %s (must be "enabled", "disabled", "writable", or "readonly")`, key, val)
			}
		case "bind-create-src":
			m.BindCreateSrc = yes
		case "bind-wait":
			m.BindWait = yes
		case "volume-driver":
			m.VolumeDriver = val
		case "volume-label":
			m.VolumeLabels = pair(m.VolumeLabels, val)
		case "volume-opt":
			m.VolumeOpts = pair(m.VolumeOpts, val)
		case "volume-nocopy":
			m.VolumeNocopy = yes
		case "volume-subpath":
			m.VolumeSubpath = val
		case "volume-sharing":
			switch val {
			case "none", "onewriter", "all":
				m.VolumeSharing = val
			default:
				return nil, invalidf("invalid value for %s: %s (must be none, onewriter or all)", key, val)
			}
		case "image-subpath":
			m.ImageSubpath = val
		case "tmpfs-size":
			if m.TmpfsSize, err = ParseBytes(val); err != nil {
				return nil, invalidf("invalid value for %s: %s", key, val)
			}
		case "tmpfs-mode":
			n, err := strconv.ParseUint(val, 8, 32)
			if err != nil {
				return nil, invalidf("invalid value for %s: %s", key, val)
			}
			m.TmpfsMode = uint32(n)
		default:
			return nil, invalidf("unknown option '%s' in '%s'", key, f)
		}
	}
	if m.Target == "" {
		return nil, invalidf("target is required")
	}
	for family, key := range used {
		if want := MountType(m.Type); family != want && (family != "volume" || want != "cluster") {
			return nil, invalidf("cannot mix '%s' with mount type '%s'", key, want)
		}
	}
	if m.BindRecursive == "readonly" && (!m.ReadOnly || m.BindPropagation != "rprivate") {
		return nil, invalidf(`option 'bind-recursive=readonly' requires 'readonly' and 'bind-propagation=rprivate' to be specified in conjunction`)
	}
	return m, nil
}

func known(key string) bool {
	switch key {
	case "type", "source", "src", "target", "dst", "destination", "consistency", "bind-propagation", "bind-recursive",
		"volume-driver", "volume-label", "volume-opt", "volume-subpath", "volume-sharing", "image-subpath", "tmpfs-size", "tmpfs-mode":
		return true
	}
	return false
}

func pair(m map[string]string, kv string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	k, v, _ := strings.Cut(kv, "=")
	m[k] = v
	return m
}

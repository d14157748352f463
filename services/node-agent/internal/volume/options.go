package volume

import (
	"context"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"

	"skep.dev/libs/spec"
)

// options are what is mounted at a local volume, as mount(8) takes it.
type options struct {
	typ, device string
	o           []string
}

// A type is part of the name of a program: mount.<type>.
var validType = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

func parseOptions(opts map[string]string) (*options, error) {
	if len(opts) == 0 {
		return nil, nil
	}
	if err := spec.ValidateLocalVolume(opts); err != nil {
		return nil, err
	}
	o := &options{typ: opts["type"], device: opts["device"]}
	for _, one := range strings.Split(opts["o"], ",") {
		if one = strings.TrimSpace(one); one != "" {
			o.o = append(o.o, one)
		}
	}
	if o.typ == "" {
		o.typ = "none"
	}
	switch {
	case !validType.MatchString(o.typ):
		return nil, fmt.Errorf("invalid volume option type=%s: use the name of a file system, such as nfs, ext4 or tmpfs", o.typ)
	case strings.HasPrefix(o.device, "-"):
		return nil, fmt.Errorf("invalid volume option device=%s: it begins with '-'", o.device)
	case strings.ContainsRune(o.device+opts["o"], 0):
		return nil, fmt.Errorf("invalid volume options: they hold a zero byte")
	}
	return o, nil
}

// resolve puts addresses where addr= names a host, and the server before an NFS device that leaves it out (":/export"), as
// docker's users write it.
func (o *options) resolve(ctx context.Context) error {
	for i, one := range o.o {
		host, ok := strings.CutPrefix(one, "addr=")
		if !ok || host == "" {
			continue
		}
		if net.ParseIP(host) == nil {
			found, err := net.DefaultResolver.LookupHost(ctx, host)
			if err != nil {
				return fmt.Errorf("find the address of %s (volume option addr=): %w", host, err)
			}
			host = found[0]
		}
		o.o[i] = "addr=" + host
		if strings.HasPrefix(o.typ, "nfs") && strings.HasPrefix(o.device, ":") {
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			o.device = host + o.device
		}
	}
	return nil
}

const hidden = "<hidden>"

var (
	secretKey = regexp.MustCompile(`(?i)^(.*(password|passwd|passphrase|secret|token|credential|apikey).*|pass[0-9]*|pwd|key|auth)$`)
	userinfo  = regexp.MustCompile(`(://|^//|^)([^\s/@:]+):([^\s@]+)@`)
)

// Shown are options without the secrets in them: for people, and for logs.
func Shown(opts map[string]string) map[string]string {
	out := maps.Clone(opts)
	for k, v := range out {
		if secretKey.MatchString(k) {
			out[k] = hidden
			continue
		}
		parts := strings.Split(v, ",")
		for i, p := range parts {
			if name, _, ok := strings.Cut(p, "="); ok && secretKey.MatchString(strings.TrimSpace(name)) {
				parts[i] = name + "=" + hidden
			}
		}
		out[k] = userinfo.ReplaceAllString(strings.Join(parts, ","), "${1}${2}:"+hidden+"@")
	}
	return out
}

// secrets are the values that Shown hides of mount options.
func (o *options) secrets() []string {
	var out []string
	for _, one := range o.o {
		if name, value, ok := strings.Cut(one, "="); ok && value != "" && secretKey.MatchString(name) {
			out = append(out, value)
		}
	}
	if m := userinfo.FindStringSubmatch(o.device); m != nil {
		out = append(out, m[3])
	}
	return out
}

// differences names the options two volumes do not have in common, "" for none.
func differences(have, want map[string]string) string {
	all := map[string]bool{}
	for _, m := range []map[string]string{have, want} {
		for k := range m {
			all[k] = true
		}
	}
	var out []string
	haveShown, wantShown := Shown(have), Shown(want)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		a, there := have[k]
		b, asked := want[k]
		switch {
		case a == b && there == asked:
		case !there:
			out = append(out, fmt.Sprintf("%s is %q and was not given there", k, wantShown[k]))
		case !asked:
			out = append(out, fmt.Sprintf("%s is not given and is %q there", k, haveShown[k]))
		case haveShown[k] == wantShown[k]:
			out = append(out, fmt.Sprintf("%s differs in what is hidden", k))
		default:
			out = append(out, fmt.Sprintf("%s is %q and is %q there", k, wantShown[k], haveShown[k]))
		}
	}
	return strings.Join(out, ", ")
}

// Package mask hides values that only those who may change services need to see, in what is answered to viewers: people who
// look and change nothing.
//
// Hidden are: of secrets and configs everything but their names, of events who did it and from where, every value of a task's environment, options of volume and log drivers (they carry credentials), the ids of registry
// credentials, values of labels whose key says that they are secret, and in commands, arguments and checks what follows a word
// that says so (--password=…, TOKEN=…, user:…@ in a URL). Names stay, and so does that a value changed: it is shown as
// <hidden:tag>, where the tag depends on name and value. Tags of one process are comparable, those of two are not; nobody can
// try values against one, since the key is random and stays in the process.
//
// What is hidden by guesswork (commands, labels) can be missed. A secret belongs into a secret, not into a command.
package mask

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"skep.dev/libs/subject"
	skepv1 "skep.dev/proto/skep/v1"
)

// ForViewer is a copy of m with what viewers may not see hidden, wherever it stands in it.
func ForViewer[M proto.Message](m M) M {
	out := proto.Clone(m).(M)
	walk(out.ProtoReflect())
	return out
}

func walk(m protoreflect.Message) {
	switch x := m.Interface().(type) {
	case *skepv1.Secret:
		x.Spec = &skepv1.SecretSpec{Name: x.Spec.GetName()}
		x.Meta, x.Versions, x.Uses = &skepv1.Meta{Id: x.Meta.GetId()}, nil, nil
	case *skepv1.Event:
		// Who did it, and from where, is for those who may change things: skep audit.
		x.Address = ""
		if subject.IsPerson(x.Actor) || x.Actor == "root" {
			x.Actor = ""
		}
		switch x.Kind {
		case "secret", "config", "user":
			maps.DeleteFunc(x.Attributes, func(k, _ string) bool { return k != "name" })
			x.Message = ""
		}
	case *skepv1.Revision:
		x.AuthorAddress, x.Summary = "", text(x.Summary)
	case *skepv1.Stack:
		x.AuthorAddress = ""
	case *skepv1.StackRevision:
		x.AuthorAddress, x.Summary = "", text(x.Summary)
	case *skepv1.StackFile:
		x.Labels, x.Version, x.TemplateDriver = nil, 0, ""
	case *skepv1.ServiceSpec:
		labels(x.Labels)
	case *skepv1.ContainerSpec:
		labels(x.Labels)
		for i, e := range x.Env {
			if name, value, ok := strings.Cut(e, "="); ok {
				x.Env[i] = name + "=" + hidden(name, value)
			}
		}
		words(x.Command)
		words(x.Args)
		x.RegistryAuth = ""
	case *skepv1.HealthConfig:
		words(x.Test)
	case *skepv1.HTTPCheck:
		x.Path = text(x.Path)
	case *skepv1.Mount:
		all(x.VolumeOpts)
	case *skepv1.LogDriver:
		all(x.Options)
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { walk(v.Message()); return true })
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				walk(v.List().Get(i).Message())
			}
		default:
			walk(v.Message())
		}
		return true
	})
}

// secretive are names of secret things: whole words, between what separates words in flags, variables and labels.
const secretive = `(?:[a-z0-9]*(?:password|passwd|passphrase|secret|token|credential|apikey)s?|pass|pwd|auth|authorization|bearer|api[-_.]key|private[-_.]?key|access[-_.]?key|basicauth[-_.]users)`

var (
	secretName = regexp.MustCompile(`(?i)(?:^|[-_./])` + secretive + `(?:$|[-_./])`)
	// A flag or variable with its value: --db-password=x, -Dapp.token=x, "password: x", ?token=x. The value ends at white
	// space, a quote, & or ;.
	assigned = regexp.MustCompile(`(?i)((?:^|[^a-z0-9])` + secretive + `[0-9]*["']?\s*[=:]\s*["']?)([^\s"'&;]+)`)
	// A flag that ends a word; its value is the next one.
	flagAlone = regexp.MustCompile(`(?i)(^|\s)(--?[a-z0-9-._]*` + secretive + `)(\s+)([^\s"']+|"[^"]*"|'[^']*')`)
	flagOnly  = regexp.MustCompile(`(?i)^--?(?:[a-z0-9-._]*[-._])?` + secretive + `$`)
	userinfo  = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s/@:]*:)([^\s/@]+)(@)`)
)

// words hides what follows a telling word in the arguments of a command.
func words(args []string) {
	for i, a := range args {
		if i > 0 && flagOnly.MatchString(args[i-1]) {
			args[i] = hidden(args[i-1], a)
			continue
		}
		args[i] = text(a)
	}
}

// text does so within one argument, which may be a script.
func text(s string) string {
	s = replace(s, userinfo, 2)
	s = replace(s, flagAlone, 4)
	return replace(s, assigned, 2)
}

// replace hides the n-th group of every match.
func replace(s string, re *regexp.Regexp, n int) string {
	var b strings.Builder
	at := 0
	for _, m := range re.FindAllStringSubmatchIndex(s, -1) {
		from, to := m[2*n], m[2*n+1]
		if strings.HasPrefix(s[from:], "<hidden:") {
			continue
		}
		b.WriteString(s[at:from])
		b.WriteString(hidden(s[m[2]:m[3]], s[from:to]))
		at = to
	}
	return b.String() + s[at:]
}

func labels(m map[string]string) {
	for k, v := range m {
		if secretName.MatchString(k) {
			m[k] = hidden(k, v)
		} else {
			m[k] = text(v)
		}
	}
}

func all(m map[string]string) {
	for k, v := range m {
		m[k] = hidden(k, v)
	}
}

var key = func() []byte {
	b := make([]byte, 32)
	rand.Read(b) // does not fail
	return b
}()

// hidden stands for a value. Two bytes tell of a change and say nothing of the value.
func hidden(name, value string) string {
	if value == "" {
		return ""
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte(name))
	h.Write([]byte{0})
	h.Write([]byte(value))
	return "<hidden:" + hex.EncodeToString(h.Sum(nil)[:2]) + ">"
}

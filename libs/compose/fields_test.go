package compose

import (
	"context"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	skepv1 "skep.dev/proto/skep/v1"
)

// notOfFiles are the fields of a StackSpec that no compose file sets, and why.
var notOfFiles = map[protoreflect.FullName]string{
	"skep.v1.StackSpec.resolve_image":     "a flag of the command",
	"skep.v1.StackFile.id":                "filled in by the command, when the vault has it",
	"skep.v1.StackFile.version":           "the same",
	"skep.v1.ContainerSpec.registry_auth": "filled in by the command (--with-registry-auth)",
	"skep.v1.TaskSpec.force_update":       "counts forced updates",
	"skep.v1.Placement.platforms":         "read from the image",
	"skep.v1.Platform.os":                 "the same",
	"skep.v1.Platform.arch":               "the same",
	"skep.v1.FileReference.id":            "filled in when the service is stored",
	"skep.v1.FileReference.version":       "the same: the newest",
	"skep.v1.FileReference.pinned":        "a stack uses the newest version of what it names",
	"skep.v1.GenericResource.named":       "reported by nodes",
	"skep.v1.Privileges.credential_spec":  "Windows",
	"skep.v1.Mount.consistency":           "without a meaning on Linux: noted",
	"skep.v1.StackVolume.external":        "set by other files of the corpus",
}

// Everything a service, network, secret or config can have is reachable from a compose file.
func TestEveryFieldIsReachable(t *testing.T) {
	dir, err := filepath.Abs("testdata/corpus")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Load(context.Background(), Options{Files: []string{"everything.yml"}, Dir: dir, Stack: "s"})
	if err != nil {
		t.Fatal(err)
	}
	set := map[protoreflect.FullName]bool{}
	var collect func(m protoreflect.Message)
	collect = func(m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			set[f.FullName()] = true
			switch {
			case f.IsMap() || f.Message() == nil:
			case f.IsList():
				for i := range v.List().Len() {
					collect(v.List().Get(i).Message())
				}
			default:
				collect(v.Message())
			}
			return true
		})
	}
	collect(s.Spec.ProtoReflect())
	seen := map[protoreflect.FullName]bool{}
	var check func(m protoreflect.MessageDescriptor)
	check = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] || m.ParentFile().Package() != "skep.v1" {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if _, ok := notOfFiles[f.FullName()]; !ok && !set[f.FullName()] {
				t.Errorf("nothing in everything.yml sets %s", f.FullName())
			}
			if f.Message() != nil && !f.IsMap() {
				check(f.Message())
			}
		}
	}
	for name := range notOfFiles {
		if set[name] {
			t.Errorf("%s is set, and notOfFiles says that no file does", name)
		}
	}
	check((&skepv1.StackSpec{}).ProtoReflect().Descriptor())
}

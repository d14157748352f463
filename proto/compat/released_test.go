package compat

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// image is what proto/ is, as buf reads it: every file of the package, each after those it imports.
func image(t *testing.T) []byte {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i))
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(skepv1.File_skep_v1_api_proto)
	for _, m := range messages() {
		add(m.Descriptor().ParentFile())
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// breaking has buf compare a copy of proto/, with texts of Heartbeat's file replaced, with what it was at a release.
func breaking(t *testing.T, release string, changes ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "skep"), os.DirFS("../skep")); err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../buf.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "buf.yaml"), rules, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "skep", "v1", heartbeatIn)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			t.Fatalf("%s has no %q", heartbeatIn, changes[i])
		}
		text = strings.Replace(text, changes[i], changes[i+1], 1)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	against, err := filepath.Abs(release)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("buf", "breaking", "--against", against)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// What a release said may be added to and not changed: buf, with the rules of proto/buf.yaml, tells the two apart.
func TestReleasedMessagesDoNotChange(t *testing.T) {
	t.Setenv("PATH", os.Getenv("SKEP_TOOLS")+":"+os.Getenv("PATH"))
	if _, err := exec.LookPath("buf"); err != nil {
		t.Fatalf("%v; `deploy/tools.sh proto` installs it, SKEP_TOOLS or PATH names bin/tools", err)
	}
	written, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(written) == 0 {
		t.Fatal("nothing is recorded", err)
	}
	now := filepath.Join(t.TempDir(), "now.binpb") // as the next release records it
	if err := os.WriteFile(now, image(t), 0o600); err != nil {
		t.Fatal(err)
	}
	releases := []string{now}
	for _, w := range written {
		releases = append(releases, strings.TrimSuffix(w, ".txt")+".binpb")
	}
	for _, release := range releases {
		t.Run(filepath.Base(release), func(t *testing.T) {
			t.Parallel()
			if out, err := breaking(t, release, "message Heartbeat {", "message Tried {}\nmessage Heartbeat {\n  string tried = 900;"); err != nil {
				t.Errorf("a message and a field more: %v\n%s", err, out)
			}
			out, err := breaking(t, release,
				"string node_id = 1;", "string node_id = 901;", "string session = 2;", "string term = 2;", "bool leaving = 5;", "uint64 leaving = 5;", "message SnapshotRequest {", "message PictureRequest {")
			if err == nil {
				t.Error("a field has another number, one another name, one another type, and a message is gone: that is no fault")
			}
			for _, what := range []string{`field "1" with name "node_id" on message "Heartbeat" was deleted`, `Field "2" on message "Heartbeat" changed name from "session" to "term"`,
				`Field "5" with name "leaving" on message "Heartbeat" changed type from "bool" to "uint64"`, `message "SnapshotRequest" was deleted`} {
				if !strings.Contains(strings.ToLower(out), strings.ToLower(what)) {
					t.Errorf("buf does not say: %s\n%s", what, out)
				}
			}
		})
	}
}

// heartbeatIn is the file of message Heartbeat.
var heartbeatIn = filepath.Base((&skepv1.Heartbeat{}).ProtoReflect().Descriptor().ParentFile().Path())

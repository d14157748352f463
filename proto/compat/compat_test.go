package compat

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "skep.dev/proto/skep/v1"
)

var record = flag.String("record", "", "write what this version writes, as the release of that name")

// messages are all of the package, in the order of their names.
func messages() (out []protoreflect.MessageType) {
	protoregistry.GlobalTypes.RangeMessages(func(t protoreflect.MessageType) bool {
		if strings.HasPrefix(string(t.Descriptor().FullName()), "skep.") && !t.Descriptor().IsMapEntry() {
			out = append(out, t)
		}
		return true
	})
	slices.SortFunc(out, func(a, b protoreflect.MessageType) int {
		return strings.Compare(string(a.Descriptor().FullName()), string(b.Descriptor().FullName()))
	})
	return out
}

// line is a message as a release wrote it: its name, its bytes in base64, its JSON.
func line(t *testing.T, typ protoreflect.MessageType) string {
	t.Helper()
	m := filled(typ)
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(typ.Descriptor().FullName()) + " " + base64.StdEncoding.EncodeToString(raw) + " " + jsonOf(t, m) + "\n"
}

// jsonOf is a message's JSON in one spelling: protojson adds blanks at random.
func jsonOf(t *testing.T, m proto.Message) string {
	t.Helper()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	var out bytes.Buffer
	if err == nil {
		err = json.Compact(&out, text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// keep writes a file of a release that is not there yet.
func keep(t *testing.T, name string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join("testdata", name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("record %s: %v; what a release wrote is never changed", name, err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Everything that a release wrote is understood: each field, in the store's encoding and in JSON.
func TestWhatReleasesWroteIsUnderstood(t *testing.T) {
	if *record != "" {
		var text strings.Builder
		for _, m := range messages() {
			text.WriteString(line(t, m))
		}
		keep(t, *record+".txt", []byte(text.String()))
		keep(t, *record+".binpb", image(t))
	}
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("nothing is recorded", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			n := 0
			lines := bufio.NewScanner(f)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				n++
				understood(t, lines.Text())
			}
			if err := lines.Err(); err != nil || n == 0 {
				t.Fatal(n, err)
			}
		})
	}
}

func understood(t *testing.T, text string) {
	t.Helper()
	parts := strings.SplitN(text, " ", 3)
	if len(parts) != 3 {
		t.Fatalf("a line of %d parts", len(parts))
	}
	typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(parts[0]))
	if err != nil {
		t.Errorf("%s: the message is gone: %v", parts[0], err)
		return
	}
	raw, err := base64.StdEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	m, fromJSON := typ.New().Interface(), typ.New().Interface()
	if err := proto.Unmarshal(raw, m); err != nil {
		t.Errorf("%s: %v", parts[0], err)
		return
	}
	if n := unknown(m.ProtoReflect()); n > 0 {
		t.Errorf("%s: %d fields that were written are not known any more", parts[0], n)
	}
	if err := protojson.Unmarshal([]byte(parts[2]), fromJSON); err != nil {
		t.Errorf("%s, as JSON: %v", parts[0], err)
		return
	}
	if !proto.Equal(m, fromJSON) {
		t.Errorf("%s: it reads as\n %s\nand was written as\n %s", parts[0], jsonOf(t, m), parts[2])
	}
}

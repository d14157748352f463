package translate

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/spec"
)

// FuzzService sends any body. None ends the process; what is accepted can be stored, and what the rules of all clients then let
// through comes back as it went, by clients of every version.
func FuzzService(f *testing.F) {
	for _, pattern := range []string{"testdata/create/*.json", "testdata/stack/services-*.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			var c struct{ Body rawBody }
			if decode(b, &c) == nil && len(c.Body) > 0 {
				b = c.Body
			}
			f.Add(b, 50)
		}
	}
	for _, body := range []string{
		`null`, `{}`, `[]`, `{"TaskTemplate":null}`, `{"TaskTemplate":{"ContainerSpec":{"Secrets":[null],"Configs":[null],"Ulimits":[null]}}}`,
		`{"TaskTemplate":{"ContainerSpec":{"Image":"a","Mounts":[{"Type":"tmpfs","TmpfsOptions":{"Options":[[]]}}]},"Networks":[{"Target":""}]}}`,
		`{"Name":"a\u0000b","TaskTemplate":{"ContainerSpec":{"Image":"a"}}}`, `{"Networks":[{"Target":"x"}],"TaskTemplate":{"ContainerSpec":{"Image":"a"}}}`,
		`{"TaskTemplate":{"ContainerSpec":{"Image":"a","DNSConfig":{"Nameservers":["","::1%eth0"]},"Healthcheck":{"Test":["HTTP",":99999999/"],"Retries":99999999999}}}}`,
		`{"TaskTemplate":{"Placement":{"Preferences":[{"Spread":null}]},"Resources":{"Reservations":{"GenericResources":[{}]}},"ContainerSpec":{"Image":"a"}}}`,
	} {
		f.Add([]byte(body), 24)
	}
	f.Fuzz(func(t *testing.T, body []byte, minor int) {
		in, _, err := DecodeService(body)
		if err != nil {
			return
		}
		s, _, err := CreateFromDocker(in, nil, api(minor))
		if err != nil {
			return
		}
		if _, err := proto.Marshal(s); err != nil {
			t.Fatalf("what is accepted cannot be stored: %v", err)
		}
		spec.Defaults(s)
		if spec.Validate(s) != nil {
			return
		}
		same, _, err := UpdateFromDocker(s, clone(t, ServiceSpecToDocker(s)), nil, api(minor))
		if err != nil || !proto.Equal(s, same) {
			t.Fatalf("sent back as it is: %v\n%s\n%s", err, protojson.Format(s), protojson.Format(same))
		}
	})
}

// rawBody is a part of a file, as it stands.
type rawBody []byte

func (b *rawBody) UnmarshalJSON(in []byte) error {
	*b = append(rawBody(nil), in...)
	return nil
}

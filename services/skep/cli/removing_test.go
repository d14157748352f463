package cli

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
)

// Every flag of every command that removes says by name what was not there: it is refused, or warned of. A new flag is found
// by its name, -rm, and needs a line here only where the command needs more than an object.
func TestWhatRemovesNothingIsSaid(t *testing.T) {
	objects := map[string]string{"service update": "-d " + webID, "node update": nodeID, "secret update": "pw", "config update": "web.conf", "volume update": "--node " + nodeID + " v"}
	values := map[string]string{"publish": "9999", "dns": "9.9.9.9", "host": "nobody:9.9.9.9", "mount": "/nowhere", "constraint": "node.role==other", "ulimit": "nproc"}
	tree, flags := leaves(New(Env{Getenv: func(string) string { return "" }})), 0
	for _, path := range slices.Sorted(maps.Keys(tree)) {
		tree[path].Flags().VisitAll(func(f *pflag.Flag) {
			name, is := strings.CutSuffix(f.Name, "-rm")
			if !is {
				return
			}
			flags++
			value := values[name]
			if value == "" {
				value = "nothing"
			}
			object, ok := objects[path]
			if !ok {
				t.Errorf("skep %s --%s: no object to try it at: nobody knows what it says when nothing matches", path, f.Name)
				return
			}
			t.Run(path+" --"+f.Name, func(t *testing.T) {
				c := newCluster(t).withNetworks()
				c.services = []*skepv1.Service{webService()}
				c.withSecrets()
				onNode(c, api.VolumeList.At(nodeID), func(*skepv1.ListVolumesRequest) (*skepv1.ListVolumesReply, error) {
					return &skepv1.ListVolumesReply{Volumes: []*skepv1.Volume{{Name: "v", Driver: "local", Labels: map[string]string{"kept": ""}}}}, nil
				})
				onNode(c, api.VolumeUpdate.At(nodeID), func(*skepv1.UpdateVolumeRequest) (*skepv1.VolumeReply, error) { return &skepv1.VolumeReply{}, nil })
				c.on = func(m proto.Message) error {
					if r, is := m.(*skepv1.UpdateNodeRequest); is && len(r.LabelRm) > 0 { // state's own test has its words
						return fault.Invalid("key %s doesn't exist in node's labels: it has none", r.LabelRm[0])
					}
					return nil
				}
				r := c.run(append(strings.Fields(path), append([]string{"--" + f.Name, value}, strings.Fields(object)...)...)...)
				warned := r.code == 0 && strings.Contains(r.err, "Warning: --"+f.Name+" "+value+": ") && strings.Contains(r.err, "nothing was removed")
				refused := r.code != 0 && strings.Contains(r.err, "Error: ") && strings.Contains(r.err, value)
				if !warned && !refused || r.code == 0 && strings.Contains(r.err, "unknown flag") {
					t.Errorf("status %d\n%s%s", r.code, r.out, r.err)
				}
			})
		})
	}
	if flags < 20 {
		t.Errorf("only %d flags are found by their name", flags)
	}
}

package images

import (
	"context"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// logspout stands for gliderlabs/logspout: it collects the logs of its node's containers. That one asks Docker's socket, this one reads
// the files that skep's agent keeps; see the program logspout.
func logspout(_ context.Context, in Inputs) (v1.Image, error) {
	tree, err := busyboxTree(in)
	if err != nil {
		return nil, err
	}
	if err := tree.program("bin/logspout", in, "logspout"); err != nil {
		return nil, err
	}
	return assemble(tree, "amd64", v1.Config{Entrypoint: []string{"/bin/logspout"}, Env: []string{searchPath}, ExposedPorts: map[string]struct{}{"80/tcp": {}}})
}

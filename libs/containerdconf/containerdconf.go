// Package containerdconf is the configuration of the containerd that holds a node's tasks, for whoever starts it: the agent, or an
// engine that runs it in a container of its own. One text, so that a node that changes from one form to the other keeps its images.
package containerdconf

import "fmt"

// Text is the content of config.toml: images in dir, sockets and what is of this boot in run. Both are absolute.
func Text(dir, run string) string {
	return fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[2]s/containerd"
disabled_plugins = [
 "io.containerd.cri.v1.images","io.containerd.cri.v1.runtime","io.containerd.grpc.v1.cri",
 "io.containerd.podsandbox.controller.v1.podsandbox","io.containerd.nri.v1.nri",
 "io.containerd.tracing.processor.v1.otlp","io.containerd.internal.v1.tracing",
 "io.containerd.snapshotter.v1.btrfs","io.containerd.snapshotter.v1.devmapper","io.containerd.snapshotter.v1.zfs",
 "io.containerd.snapshotter.v1.blockfile","io.containerd.snapshotter.v1.erofs",
 "io.containerd.differ.v1.erofs","io.containerd.mount-handler.v1.erofs","io.containerd.internal.v1.opt"]
[grpc]
  address = "%[2]s/containerd.sock"
[ttrpc]
  address = "%[2]s/containerd.sock.ttrpc"
[metrics]
  address = ""
`, dir, run)
}

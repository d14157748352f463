package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// engineEnv is what a command needs to find the Docker Engine of its host, and Compose.
var engineEnv = []string{"DOCKER_HOST=unix:///run/docker.sock", "DOCKER_CONFIG=/srv/docker-config"}

// StartEngine starts Debian's Docker Engine on a host, as after a boot, and waits until it answers. `deploy/tools.sh engine` brings it.
//
// Its data is below /srv, on the host's disk. Its containerd is started first: one that dockerd starts itself is given up on a
// busy machine.
func (l *Lab) StartEngine(ctx context.Context, host string) error {
	engine, err := filepath.EvalSymlinks(filepath.Join(l.Bin, "tools", "engine"))
	if err != nil {
		return fmt.Errorf("find the Docker Engine: %w; run `deploy/tools.sh engine`", err)
	}
	compose := filepath.Join(l.Bin, "tools", "docker-compose")
	if _, err := os.Stat(compose); err != nil {
		return fmt.Errorf("find Compose: %w; run `deploy/tools.sh engine`", err)
	}
	script := fmt.Sprintf(`set -e
PATH=%[1]s/usr/sbin:%[1]s/usr/bin:$PATH
mount --make-rshared /run; mount --make-rshared /var/lib/skep # as systemd has them
mkdir -p /srv/docker /srv/containerd /run/docker-containerd /srv/docker-config/cli-plugins
ln -sfn %[2]s /srv/docker-config/cli-plugins/docker-compose
cat >/srv/containerd.toml <<'END'
version = 2
root = "/srv/containerd"
state = "/run/docker-containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/docker-containerd/containerd.sock"
END
setsid containerd --config /srv/containerd.toml >>/srv/docker-containerd.log 2>&1 </dev/null &
for i in $(seq 600); do [ -S /run/docker-containerd/containerd.sock ] && break; sleep 0.05; done
setsid dockerd --containerd /run/docker-containerd/containerd.sock --data-root /srv/docker --exec-root /run/docker \
  --pidfile /run/docker.pid --host unix:///run/docker.sock >>/srv/dockerd.log 2>&1 </dev/null &
for i in $(seq 600); do docker info >/dev/null 2>&1 && exit 0; sleep 0.1; done
tail -n 20 /srv/docker-containerd.log /srv/dockerd.log >&2; exit 1`, engine, compose)
	if _, err := l.must(ctx, host, slices.Concat([]string{"env"}, engineEnv, []string{"sh", "-c", script})...); err != nil {
		return fmt.Errorf("start the Docker Engine of %s: %w", host, err)
	}
	return nil
}

// Docker is the command line of docker on a host that has an engine, with more variables of environment.
func (l *Lab) Docker(env []string, args ...string) []string {
	return slices.Concat([]string{"env"}, engineEnv, env, []string{filepath.Join(l.Bin, "tools", "engine", "usr", "bin", "docker")}, args)
}

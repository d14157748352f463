package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skep.dev/e2e/images"
)

// registriesTOML tells the agents of the hosts where docker.io is.
const registriesTOML = `[registries."docker.io"]
mirrors = ["http://` + registryIP + `:5000"]
mirrors_only = true

[registries."` + registryIP + `:5000"]
plain_http = true

[registries."` + PrivateAddress + `"]
ca = "` + PrivateCA + `"
`

// RegistryAddress is where the lab's registry listens, for names that spell it out.
const RegistryAddress = registryIP + ":5000"

// PrivateAddress is where a registry with the same images listens that wants a password (StartPrivate), and PrivateCA the
// file of every host that vouches for it.
const (
	PrivateAddress = registryIP + ":5443"
	PrivateCA      = "/var/lib/skep/private-ca.pem"
)

const registryConfig = `version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http: {net: %s, addr: "%s"}
`

// CacheDir is where the lab keeps what is slow to make: SKEP_CACHE, else skep below the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("SKEP_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place to cache images: %w; set SKEP_CACHE", err)
	}
	return filepath.Join(dir, "skep"), nil
}

// Inputs are what the images of a lab with this bin folder are made of.
func Inputs(bin string) (images.Inputs, error) {
	cache, err := CacheDir()
	if err != nil {
		return images.Inputs{}, err
	}
	suite := os.Getenv("SKEP_DEBIAN_SUITE")
	if suite == "" {
		suite = "bookworm"
	}
	return images.Inputs{Bin: bin, Cache: filepath.Join(cache, "images"), Suite: suite}, nil
}

// seedRegistry returns a folder with the store of a registry that holds all images; made once per set of images, by pushing them
// to a real registry on a unix socket.
func (l *Lab) seedRegistry(ctx context.Context) (string, error) {
	in, err := Inputs(l.Bin)
	if err != nil {
		return "", err
	}
	cheap, err := images.Key(in)
	if err != nil {
		return "", err
	}
	version, err := os.Readlink(filepath.Join(l.Bin, "tools", "registry")) // its target's name carries the version
	if err != nil {
		return "", fmt.Errorf("find the registry: %w; run `make tools`", err)
	}
	sum := sha256.Sum256([]byte(cheap + filepath.Base(version)))
	store := filepath.Join(filepath.Dir(in.Cache), "registry", hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(store); err == nil {
		return store, nil
	}
	if err := os.MkdirAll(filepath.Dir(store), 0o755); err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(filepath.Dir(store), ".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(store); err == nil {
		return store, nil
	}
	l.say("building the images (once)")
	imgs, err := images.Build(ctx, in)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(store), ".seed-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := l.pushAll(ctx, tmp, imgs); err != nil {
		return "", fmt.Errorf("fill the registry: %w", err)
	}
	return store, os.Rename(filepath.Join(tmp, "store"), store)
}

func (l *Lab) pushAll(ctx context.Context, dir string, imgs []images.Image) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	sock, conf := filepath.Join(dir, "sock"), filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "store"), "unix", sock), 0o644); err != nil {
		return err
	}
	var said strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join(l.Bin, "tools", "registry"), "serve", conf)
	cmd.Env = registryEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }() // its end is our doing
	for {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the registry does not answer: %s", said.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	defer transport.CloseIdleConnections()
	return images.Push(ctx, "registry.test", transport, imgs...)
}

// startRegistry runs the registry on its host. What is pushed to it goes to that host's disk; the seed is shared and never changes.
func (l *Lab) startRegistry(ctx context.Context, store string) error {
	h, err := l.Host("registry")
	if err != nil {
		return err
	}
	const mnt, upper = "/run/registry", "/var/lib/skep"
	script := fmt.Sprintf(`set -e
mkdir -p %[1]s %[2]s/upper %[2]s/work
mount -t overlay overlay -o lowerdir=%[3]s,upperdir=%[2]s/upper,workdir=%[2]s/work %[1]s
cat >%[2]s/registry.yml <<'END'
%[4]sEND
exec setsid registry serve %[2]s/registry.yml >>%[2]s/registry.log 2>&1 </dev/null`,
		mnt, upper, store, fmt.Sprintf(registryConfig, mnt, "tcp", ":5000"))
	cmd, err := l.Command(context.WithoutCancel(ctx), h.Name, "/bin/sh", "-c", script)
	if err != nil {
		return err
	}
	cmd.Env = registryEnv(cmd.Env)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the registry: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		r, err := l.Run(ctx, h.Name, "nc", "-z", "-w1", registryIP, "5000")
		if err != nil {
			return fmt.Errorf("start the registry: %w", err)
		}
		if r.Code == 0 {
			return nil
		}
		select {
		case err := <-ended:
			log, _ := os.ReadFile(filepath.Join(l.diskDir(h), "lib", "registry.log"))
			return fmt.Errorf("the registry ended: %w", errors.Join(err, errors.New(string(log))))
		case <-ctx.Done():
			return fmt.Errorf("start the registry: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// registryEnv keeps the registry from looking for a telemetry collector.
func registryEnv(env []string) []string { return append(env, "OTEL_TRACES_EXPORTER=none") }

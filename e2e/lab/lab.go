package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skep.dev/libs/atomicfile"
)

const (
	// DefaultName is the lab that commands mean when none is named.
	DefaultName = "lab"

	runRoot  = "/run/skep-lab"
	diskRoot = "/var/lib/skep-lab"
)

// Roles of a host.
const (
	Manager  = "manager"
	Worker   = "worker"
	Client   = "client"   // outside the cluster: a user of the published ports
	Registry = "registry" // docker.io's mirror
)

// Options say what Up makes.
type Options struct {
	Name     string // DefaultName when empty
	Hosts    int    // all hosts of the cluster, managers included; 0 is 3
	Managers int    // 0 is 1
	// NoCluster boots the hosts and the registry but neither runs `skep init` nor `skep join`.
	NoCluster bool
	// InitFlags are added to `skep init`, NodeFlags to `skep init` and `skep join`.
	InitFlags, NodeFlags []string
	// Bin is the folder of skep and bin/tools; "" looks beside the running program, then upwards for a bin folder.
	Bin string
	// Separate runs every service of a node as a process of its own instead of `skep node run`.
	Separate bool
	// Race runs the race build of skep, bin/race/skep.
	Race bool
	// Env is added to every command on every host.
	Env []string
	// Lifeline ends every host when this process ends, however it ends. Tests want it, `skep-lab up` does not.
	Lifeline bool
	// SmallDisk gives the named hosts an image store of this many bytes only.
	SmallDisk map[string]int64
	// OwnDisk gives every manager a file system of its own of this many bytes at /var/lib/skep, which FillDisk fills.
	OwnDisk int64
	// VolumePlugin, such as rexray, is the name of a volume plug-in that runs on every host of the cluster.
	VolumePlugin string
	// Progress receives a line per step; nil is silence.
	Progress io.Writer
}

// Lab is a set of hosts on a fabric.
type Lab struct {
	Name  string   `json:"name"`
	Bin   string   `json:"bin"`
	Skep  string   `json:"skep"`
	Env   []string `json:"env,omitempty"`
	Flags []string `json:"flags,omitempty"` // of every `skep init` and `skep join`
	Hosts []*Host  `json:"hosts"`
	// Separate: the hosts run their services as processes of their own.
	Separate bool `json:"separate,omitempty"`
	// VolumePlugin is the name of the volume plug-in that every host of the cluster runs, "" = none does.
	VolumePlugin string `json:"volume_plugin,omitempty"`

	mu       sync.Mutex
	progress io.Writer
	lifeline *os.File // the write end whose closing ends the hosts; never written to
	reader   *os.File
	poor     map[string]*poor // cables by host; they end with this process
	hung     map[string]*hang // own disks by host
}

// Host is one machine of a lab.
type Host struct {
	Name      string `json:"name"`
	Role      string `json:"role"`
	IP        string `json:"ip"`
	PID       int    `json:"pid"` // of its init, 0 while it is off
	Started   uint64 `json:"started"`
	Cut       bool   `json:"cut"`
	Frozen    bool   `json:"frozen,omitempty"`
	SmallDisk int64  `json:"small_disk,omitempty"`
	OwnDisk   int64  `json:"own_disk,omitempty"`
	Joined    bool   `json:"joined"` // has a daemon to start again after a power-off
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

// ErrNoLab says that no lab of that name is up.
var ErrNoLab = errors.New("no such lab")

// Up makes a lab and, unless told not to, a cluster on it. When it does not succeed it leaves nothing.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if !validName.MatchString(o.Name) {
		return nil, fmt.Errorf("lab name %q: use 1 to 20 of a-z, 0-9 and -", o.Name)
	}
	if o.VolumePlugin != "" && !validName.MatchString(o.VolumePlugin) {
		return nil, fmt.Errorf("name of the volume plug-in %q: use 1 to 20 of a-z, 0-9 and -", o.VolumePlugin)
	}
	if o.Hosts == 0 {
		o.Hosts = 3
	}
	if o.Managers == 0 {
		o.Managers = 1
	}
	if o.Managers > o.Hosts || o.Hosts > 200 {
		return nil, fmt.Errorf("%d hosts with %d managers: -n counts all hosts, managers included, 200 at most", o.Hosts, o.Managers)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root: it makes network namespaces and mounts")
	}
	if _, err := os.Stat(statePath(o.Name)); err == nil {
		return nil, fmt.Errorf("lab %s is up already: use another -name, or `skep-lab down -name %s` first", o.Name, o.Name)
	}
	bin, err := FindBin(o.Bin)
	if err != nil {
		return nil, err
	}
	l := &Lab{Name: o.Name, Bin: bin, Skep: bin, Env: o.Env, Flags: o.NodeFlags, Separate: o.Separate, VolumePlugin: o.VolumePlugin, progress: o.Progress}
	if o.Separate {
		l.Flags = append(slices.Clone(l.Flags), "--no-start")
	}
	if o.Race {
		l.Skep = filepath.Join(bin, "race")
	}
	if err := remove(o.Name); err != nil { // what a crashed lab of that name left
		return nil, err
	}
	l.plan(o)
	if err := l.build(ctx, o); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) plan(o Options) {
	for i := 1; i <= o.Managers; i++ {
		l.Hosts = append(l.Hosts, &Host{Name: fmt.Sprintf("m%d", i), Role: Manager, IP: fmt.Sprintf("10.90.1.%d", i)})
	}
	for i := 1; i <= o.Hosts-o.Managers; i++ {
		l.Hosts = append(l.Hosts, &Host{Name: fmt.Sprintf("w%d", i), Role: Worker, IP: fmt.Sprintf("10.90.2.%d", i)})
	}
	for _, h := range l.Hosts {
		h.SmallDisk = o.SmallDisk[h.Name]
		if h.Role == Manager {
			h.OwnDisk = o.OwnDisk
		}
	}
	l.Hosts = append(l.Hosts,
		&Host{Name: "client", Role: Client, IP: "10.90.0.200"},
		&Host{Name: "registry", Role: Registry, IP: registryIP})
}

func (l *Lab) build(ctx context.Context, o Options) error {
	began := time.Now()
	store, err := l.seedRegistry(ctx)
	if err != nil {
		return err
	}
	if o.Lifeline {
		if l.reader, l.lifeline, err = os.Pipe(); err != nil {
			return fmt.Errorf("make a lifeline: %w", err)
		}
	}
	if err := l.makeFabric(ctx); err != nil {
		return err
	}
	errs := make(chan error, len(l.Hosts))
	for _, h := range l.Hosts {
		go func() { errs <- l.boot(ctx, h) }()
	}
	for range l.Hosts {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	if err := l.startRegistry(ctx, store); err != nil {
		return err
	}
	l.say("%d hosts on their fabric in %.1f s", o.Hosts, time.Since(began).Seconds())
	if o.NoCluster {
		return nil
	}
	if err := l.makeCluster(ctx, o); err != nil {
		return err
	}
	l.say("cluster ready after %.1f s", time.Since(began).Seconds())
	return l.save()
}

// Load finds a lab that is up.
func Load(name string) (*Lab, error) {
	if name == "" {
		name = DefaultName
	}
	b, err := os.ReadFile(statePath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not up; `skep-lab up -name %s` makes it", ErrNoLab, name, name)
	}
	if err != nil {
		return nil, err
	}
	l := &Lab{}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("read %s: %w", statePath(name), err)
	}
	return l, nil
}

// List names the labs of this machine.
func List() ([]string, error) {
	var names []string
	found, err := filepath.Glob(filepath.Join(runRoot, "*", "state.json"))
	for _, f := range found {
		names = append(names, filepath.Base(filepath.Dir(f)))
	}
	sort.Strings(names)
	return names, err
}

// Host finds a host by its name.
func (l *Lab) Host(name string) (*Host, error) {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return nil, fmt.Errorf("lab %s has no host %q; it has %s", l.Name, name, l.names())
}

func (l *Lab) names() string {
	s := ""
	for i, h := range l.Hosts {
		if i > 0 {
			s += ", "
		}
		s += h.Name
	}
	return s
}

// Down ends every process of the lab and removes everything it made. It may be called again.
func (l *Lab) Down() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lifeline != nil {
		l.lifeline.Close()
		l.reader.Close()
		l.lifeline, l.reader = nil, nil
	}
	l.resumeDisks()
	err := errors.Join(l.endPoor(), remove(l.Name))
	for _, h := range l.Hosts {
		err = errors.Join(err, awaitEnd(h.PID))
	}
	return err
}

// Remove is Down for a lab known by name only, also for what is left of one that crashed.
func Remove(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("lab name %q: use 1 to 20 of a-z, 0-9 and -", name)
	}
	return remove(name)
}

func (l *Lab) say(format string, args ...any) {
	if l.progress != nil {
		fmt.Fprintf(l.progress, "%s: "+format+"\n", append([]any{l.Name}, args...)...)
	}
}

// save writes the lab down, so that later commands find it.
func (l *Lab) save() error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	path := statePath(l.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(path, append(b, '\n')); err != nil {
		return fmt.Errorf("write down the lab: %w", err)
	}
	return nil
}

func statePath(name string) string { return filepath.Join(runRoot, name, "state.json") }

func (l *Lab) runDir(h *Host) string  { return filepath.Join(runRoot, l.Name, h.Name) }
func (l *Lab) diskDir(h *Host) string { return filepath.Join(diskRoot, l.Name, h.Name) }

// FindBin looks for the folder that holds skep-lab's companions.
func FindBin(given string) (string, error) {
	if given == "" {
		given = os.Getenv("SKEP_BIN")
	}
	var tried []string
	try := func(dir string) bool {
		tried = append(tried, dir)
		return unix.Access(filepath.Join(dir, "tools", "containerd"), unix.X_OK) == nil
	}
	if given != "" {
		abs, err := filepath.Abs(given)
		if err == nil && try(abs) {
			return abs, nil
		}
		return "", fmt.Errorf("no tools/containerd in %s: run `make build tools` there", given)
	}
	if exe, err := os.Executable(); err == nil && try(filepath.Dir(exe)) {
		return filepath.Dir(exe), nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if try(filepath.Join(dir, "bin")) {
			return filepath.Join(dir, "bin"), nil
		}
	}
	return "", fmt.Errorf("no folder with tools/containerd among %v: run `make build tools`, or set SKEP_BIN", tried)
}

package ctrd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"sort"
	"strconv"

	"github.com/moby/sys/signal"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/filetemplate"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/node-agent/internal/files"
	"skep.dev/services/node-agent/internal/ocispec"
	"skep.dev/services/node-agent/internal/task"
)

// Secrets and configs of a task: fetched before anything is made of it, written into its file system in memory, mounted
// one by one into its container.

// delivered is what a task refers to, with the values this agent was given or an earlier one has put in place.
type delivered struct {
	refs   []fileRef
	values map[task.FileKey]*skepv1.DeliveredValue
	placed []files.Placed // by an earlier agent or try, whole; nil = there is none
}

// fileRef is a secret or config of a task and where it stands.
type fileRef struct {
	*skepv1.FileReference
	kind skepv1.SecretKind
	path string // in the container
}

func (f fileRef) key() task.FileKey { return task.FileKey{ID: f.Id, Version: f.Version} }

func referencesOf(c *skepv1.ContainerSpec) (out []fileRef) {
	for _, f := range c.GetSecrets() {
		k := skepv1.SecretKind_SECRET_KIND_SECRET
		out = append(out, fileRef{f, k, spec.FilePath(k, f.Target)})
	}
	for _, f := range c.GetConfigs() {
		k := skepv1.SecretKind_SECRET_KIND_CONFIG
		out = append(out, fileRef{f, k, spec.FilePath(k, f.Target)})
	}
	return out
}

func (d *delivered) wipe() {
	for _, v := range d.values {
		seal.Wipe(v.Value)
	}
}

// held names the versions, each once.
func (d *delivered) held() (out []*skepv1.HeldFile) {
	seen := map[task.FileKey]bool{}
	for _, f := range d.refs {
		if !seen[f.key()] {
			seen[f.key()] = true
			out = append(out, &skepv1.HeldFile{Id: f.Id, Version: f.Version})
		}
	}
	return out
}

// fetchFiles asks the vault for what the task refers to, unless an earlier agent was given it.
func (r *Runtime) fetchFiles(ctx context.Context, j *task.Job, progress func(string)) (*delivered, error) {
	d := &delivered{refs: referencesOf(j.Container())}
	if len(d.refs) == 0 {
		return d, nil
	}
	if d.placed = r.files.Placed(j.ID()); d.covered() {
		return d, nil
	}
	d.placed = nil
	if r.cfg.Courier == nil {
		return nil, errors.New("this node cannot be given secrets")
	}
	progress("waiting for secrets")
	got, err := r.cfg.Courier.Files(ctx, j.ID(), nil)
	if err != nil {
		return nil, err
	}
	d.values = got.Values
	// Newer versions than this task was made with come to those that run with a signal; a new one begins with them.
	for i := range d.refs {
		v, err := d.version(i, got)
		if err != nil {
			return nil, err
		}
		d.refs[i] = d.refs[i].at(v)
		if d.values[d.refs[i].key()] == nil {
			return nil, d.refs[i].lacks()
		}
	}
	return d, nil
}

// version is what a delivery has for a reference. It names one for each, in their order: an object may stand in several
// places, in as many versions.
func (d *delivered) version(i int, got *task.Delivery) (uint64, error) {
	if len(got.Files) != len(d.refs) || got.Files[i].Id != d.refs[i].Id {
		return 0, task.Temporary(fmt.Errorf("the vault's delivery lacks the %s %s", spec.KindWord(d.refs[i].kind), d.refs[i].Name))
	}
	return got.Files[i].Version, nil
}

// at is the same reference to another version. The spec that it is of is shared, and stays as it is.
func (f fileRef) at(version uint64) fileRef {
	ref := proto.CloneOf(f.FileReference)
	ref.Version = version
	return fileRef{ref, f.kind, f.path}
}

func (f fileRef) lacks() error {
	return task.Temporary(fmt.Errorf("the vault's delivery lacks version %d of the %s %s", f.Version, spec.KindWord(f.kind), f.Name))
}

// covered reports whether every file stands, in whatever version: newer ones than the task was made with may have come.
func (d *delivered) covered() bool {
	at := map[string]files.Placed{}
	for _, p := range d.placed {
		at[p.Path] = p
	}
	for i, f := range d.refs {
		p, ok := at[f.path]
		if !ok || p.ID != f.Id {
			return false
		}
		d.refs[i] = f.at(p.Version)
	}
	return true
}

// placeFiles writes the files and returns the container's mounts.
func (r *Runtime) placeFiles(j *task.Job, in ocispec.Input, hostname string, d *delivered) ([]specs.Mount, error) {
	if len(d.refs) == 0 {
		return nil, nil
	}
	if d.placed == nil {
		list, err := render(in, hostname, d)
		if err != nil {
			return nil, err
		}
		defer func() {
			for _, f := range list {
				seal.Wipe(f.Value)
			}
		}()
		if err := r.files.Remove(j.ID()); err != nil { // of an earlier try
			return nil, task.Temporary(err)
		}
		placed, err := r.files.Put(j.ID(), list)
		if err == nil {
			err = r.files.Keep(j.ID(), placed)
		}
		if err != nil {
			return nil, task.Temporary(err)
		}
		d.placed = placed
	}
	var out []specs.Mount
	for _, p := range d.placed {
		out = append(out, specs.Mount{Destination: p.Path, Type: "bind", Source: p.Source, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"}})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Destination < out[j].Destination })
	return out, nil
}

// render makes files of values: owners by the image's names, templates filled in.
func render(in ocispec.Input, hostname string, d *delivered) ([]files.File, error) {
	from, err := sources(in, hostname, d)
	if err != nil {
		return nil, err
	}
	var out []files.File
	for _, f := range d.refs {
		v := d.values[f.key()]
		word := spec.KindWord(f.kind)
		uid, err := accountID(f.Uid, in.Passwd, lookupUID)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", word, f.Name, err)
		}
		gid, err := accountID(f.Gid, in.Group, lookupGID)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", word, f.Name, err)
		}
		value := bytes.Clone(v.Value)
		if v.TemplateDriver != "" {
			if value, err = filetemplate.Fill(v.Value, in.Names, from); err != nil {
				return nil, fmt.Errorf("%s %s: %w", word, f.Name, err)
			}
		}
		out = append(out, files.File{Path: path.Clean(f.path), ID: f.Id, Version: f.Version, UID: uid, GID: gid, Mode: fileMode(f.Mode), Value: value, Template: v.TemplateDriver != ""})
	}
	return out, nil
}

// sources are what templates may ask for, by target as it was written and by path.
func sources(in ocispec.Input, hostname string, d *delivered) (from filetemplate.Sources, err error) {
	templates := false
	for _, v := range d.values {
		templates = templates || v.TemplateDriver != ""
	}
	if !templates {
		return from, nil // nor are there copies of the values
	}
	env, err := ocispec.Environment(in, hostname)
	if err != nil {
		return from, err
	}
	values := map[skepv1.SecretKind]map[string]string{skepv1.SecretKind_SECRET_KIND_SECRET: {}, skepv1.SecretKind_SECRET_KIND_CONFIG: {}}
	for _, f := range d.refs {
		if d.values[f.key()] == nil {
			continue
		}
		v := string(d.values[f.key()].Value)
		values[f.kind][f.Target], values[f.kind][f.path] = v, v
	}
	look := func(k skepv1.SecretKind) func(string) (string, bool) {
		return func(target string) (string, bool) { v, ok := values[k][target]; return v, ok }
	}
	return filetemplate.Sources{
		Secret: look(skepv1.SecretKind_SECRET_KIND_SECRET), Config: look(skepv1.SecretKind_SECRET_KIND_CONFIG),
		Env: func(name string) string { return ocispec.Getenv(env, name) },
	}, nil
}

// Refresh puts newer versions into the files of a task that runs, and then sends it the signals it asks for. It returns
// what the task has now. pid is its container's first process.
func (r *Runtime) Refresh(ctx context.Context, j *task.Job, pid uint32, got *task.Delivery) ([]*skepv1.HeldFile, error) {
	ctx = r.ns(ctx)
	c := j.Container()
	d := &delivered{refs: referencesOf(c), placed: r.files.Placed(j.ID()), values: got.Values}
	defer d.wipe()
	if !d.covered() {
		return nil, errors.New("its files are not there any more")
	}
	old := map[string]files.Placed{}
	for _, p := range d.placed {
		old[p.Path] = p
	}
	changed := &delivered{values: got.Values}
	signals := map[string]bool{}
	for i, f := range d.refs {
		v, err := d.version(i, got)
		if err != nil {
			return nil, err
		}
		if v == f.Version {
			continue
		}
		d.refs[i] = f.at(v)
		if d.values[d.refs[i].key()] == nil {
			return nil, d.refs[i].lacks()
		}
		changed.refs = append(changed.refs, d.refs[i])
		if f.kind == skepv1.SecretKind_SECRET_KIND_CONFIG {
			signals[c.GetConfigUpdateSignal()] = true
		} else {
			signals[c.GetSecretUpdateSignal()] = true
		}
	}
	if len(changed.refs) == 0 {
		return d.held(), nil
	}
	// What was filled in may have asked for what changed.
	for _, f := range d.refs {
		if old[f.path].Template && d.values[f.key()] != nil && !slices.ContainsFunc(changed.refs, func(c fileRef) bool { return c.path == f.path }) {
			changed.refs = append(changed.refs, f)
		}
	}
	// The first process is held, so that no other has its number when its mounts are entered.
	to := r.aim(ctx, j.ID(), pid)
	defer to.close()
	if to.fd < 0 {
		return nil, task.Soon(errors.New("its process cannot be held"))
	}
	list, err := r.renderNewer(ctx, j, d, changed)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range list {
			seal.Wipe(f.Value)
		}
	}()
	fresh, err := r.files.Put(j.ID(), list)
	if err != nil {
		return nil, task.Temporary(err)
	}
	if fresh, err = files.Swap(int(pid), fresh, d.placed); err != nil {
		// The next try writes them again: without this, a container whose files cannot be replaced fills the memory.
		return nil, task.Temporary(errors.Join(err, r.files.Keep(j.ID(), d.placed)))
	}
	for _, p := range fresh {
		old[p.Path] = p
	}
	all := make([]files.Placed, 0, len(old))
	for _, p := range d.placed {
		all = append(all, old[p.Path])
	}
	if err := r.files.Keep(j.ID(), all); err != nil {
		return nil, task.Temporary(err)
	}
	for name := range signals {
		sig, err := signal.ParseSignal(name)
		if err != nil {
			continue // checked when the service was made
		}
		if err := to.send(ctx, sig); err != nil {
			return nil, err
		}
	}
	return d.held(), nil
}

// Templated reports whether some of a task's files were filled in: they may change with others.
func (r *Runtime) Templated(id string) bool {
	return slices.ContainsFunc(r.files.Placed(id), func(p files.Placed) bool { return p.Template })
}

// renderNewer makes files of newer versions. Their owners are those of the files they replace.
func (r *Runtime) renderNewer(ctx context.Context, j *task.Job, d, changed *delivered) ([]files.File, error) {
	var from filetemplate.Sources
	in := ocispec.Input{Service: j.Revision.GetSpec(), Record: j.Record}
	for _, f := range changed.refs {
		if changed.values[f.key()].TemplateDriver == "" {
			continue
		}
		img, err := r.Images.Ensure(ctx, j.Container().GetImage(), nil, func(string) {})
		if err != nil {
			return nil, task.Temporary(err)
		}
		in.Image = img.Config
		in.Names = ocispec.NamesOf(r.cfg.NodeID, r.cfg.Hostname, runtime.GOARCH, j.Record, j.Revision.GetSpec())
		hostname, err := in.Names.Hostname(j.Container().GetHostname())
		if err != nil {
			return nil, err
		}
		if from, err = sources(in, hostname, d); err != nil {
			return nil, err
		}
		break
	}
	var out []files.File
	for _, f := range changed.refs {
		file := files.File{Path: path.Clean(f.path), ID: f.Id, Version: f.Version, Mode: fileMode(f.Mode)}
		for _, p := range d.placed {
			if p.Path != file.Path {
				continue
			}
			var st unix.Stat_t
			if err := unix.Lstat(p.Source, &st); err != nil {
				return nil, task.Temporary(fmt.Errorf("look at the file %s: %w", p.Path, err))
			}
			file.UID, file.GID = int(st.Uid), int(st.Gid)
		}
		v := changed.values[f.key()]
		file.Value, file.Template = bytes.Clone(v.Value), v.TemplateDriver != ""
		if file.Template {
			var err error
			if file.Value, err = filetemplate.Fill(v.Value, in.Names, from); err != nil {
				return nil, fmt.Errorf("%s %s: %w", spec.KindWord(f.kind), f.Name, err)
			}
		}
		out = append(out, file)
	}
	return out, nil
}

// fileMode turns a mode as chmod takes it into Go's.
func fileMode(m uint32) os.FileMode {
	out := os.FileMode(m & 0o777)
	for bit, mode := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if m&bit != 0 {
			out |= mode
		}
	}
	return out
}

// accountID is a number, or a name that the image knows.
func accountID(text string, accounts []byte, look func(name string, accounts []byte) (int, error)) (int, error) {
	if text == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return int(n), nil
	}
	return look(text, accounts)
}

func lookupUID(name string, passwd []byte) (int, error) {
	users, err := user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool { return u.Name == name })
	if err != nil || len(users) == 0 {
		return 0, fmt.Errorf("the image's /etc/passwd has no user %q; give the owner as a number", name)
	}
	return users[0].Uid, nil
}

func lookupGID(name string, group []byte) (int, error) {
	groups, err := user.ParseGroupFilter(bytes.NewReader(group), func(g user.Group) bool { return g.Name == name })
	if err != nil || len(groups) == 0 {
		return 0, fmt.Errorf("the image's /etc/group has no group %q; give it as a number", name)
	}
	return groups[0].Gid, nil
}

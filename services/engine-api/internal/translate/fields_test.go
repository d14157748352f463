package translate

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

// refused are the fields of a service that skep cannot keep, each with what its refusal says. All others are kept.
var refused = map[string]string{
	"TaskTemplate.PluginSpec.Name":                                                 "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.PluginSpec.Remote":                                               "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.PluginSpec.Privileges.Name":                                      "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.PluginSpec.Privileges.Description":                               "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.PluginSpec.Privileges.Value":                                     "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.PluginSpec.Disabled":                                             "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.PluginSpec.Env":                                                  "TaskTemplate.PluginSpec is not supported",
	"TaskTemplate.NetworkAttachmentSpec.ContainerID":                               "TaskTemplate.NetworkAttachmentSpec is not supported",
	"TaskTemplate.ContainerSpec.Configs.Runtime":                                   "Configs.Runtime is not supported",
	"TaskTemplate.ContainerSpec.Mounts.ClusterOptions":                             "'ClusterOptions'",
	"TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.Options":                       "TmpfsOptions.Options of the mount at /x is not supported",
	"TaskTemplate.ContainerSpec.Privileges.SELinuxContext.Disable":                 "SELinuxContext is not supported",
	"TaskTemplate.ContainerSpec.Privileges.SELinuxContext.User":                    "SELinuxContext is not supported",
	"TaskTemplate.ContainerSpec.Privileges.SELinuxContext.Role":                    "SELinuxContext is not supported",
	"TaskTemplate.ContainerSpec.Privileges.SELinuxContext.Type":                    "SELinuxContext is not supported",
	"TaskTemplate.ContainerSpec.Privileges.SELinuxContext.Level":                   "SELinuxContext is not supported",
	"TaskTemplate.Resources.Reservations.GenericResources.NamedResourceSpec.Kind":  "Named Generic Resources is not supported",
	"TaskTemplate.Resources.Reservations.GenericResources.NamedResourceSpec.Value": "Named Generic Resources is not supported",
}

// samples are values for fields that do not take any.
var samples = map[string]any{
	"Mode.ReplicatedJob.MaxConcurrent":                 uint64(3),
	"UpdateConfig.FailureAction":                       "rollback",
	"RollbackConfig.FailureAction":                     "continue",
	"UpdateConfig.Order":                               "start-first",
	"RollbackConfig.Order":                             "start-first",
	"EndpointSpec.Mode":                                "dnsrr",
	"EndpointSpec.Ports.Protocol":                      "udp",
	"EndpointSpec.Ports.PublishMode":                   "host",
	"TaskTemplate.Runtime":                             "container",
	"TaskTemplate.RestartPolicy.Condition":             "on-failure",
	"TaskTemplate.ContainerSpec.Mounts.Type":           "tmpfs",
	"TaskTemplate.ContainerSpec.Healthcheck.Test":      []string{"CMD", "true"},
	"TaskTemplate.ContainerSpec.DNSConfig.Nameservers": []netip.Addr{netip.MustParseAddr("10.0.0.53")},
}

// within are elements of lists that need something besides the field that is looked at.
var within = map[string]any{
	"TaskTemplate.ContainerSpec.Secrets": &swarm.SecretReference{SecretID: "id", SecretName: "name", File: &swarm.SecretReferenceFileTarget{}},
	"TaskTemplate.ContainerSpec.Configs": &swarm.ConfigReference{ConfigID: "id", ConfigName: "name", File: &swarm.ConfigReferenceFileTarget{}},
	"TaskTemplate.ContainerSpec.Mounts":  mount.Mount{Type: mount.TypeBind, Target: "/x"},
	"TaskTemplate.ContainerSpec.Ulimits": &container.Ulimit{},
}

// TestEveryFieldIsKeptOrRefused walks every field that Docker's type of a service has: each is in what comes back, or was refused by
// name. A field that a later version of the types adds fails here until somebody decides.
func TestEveryFieldIsKeptOrRefused(t *testing.T) {
	seen := map[string]bool{}
	walkFields(reflect.TypeFor[swarm.ServiceSpec](), nil, func(path []string, leaf reflect.Type) {
		name := strings.Join(path, ".")
		seen[name] = true
		in := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "nginx"}}}
		want := setField(t, reflect.ValueOf(&in).Elem(), path, nil)
		if name == "TaskTemplate.ContainerSpec.Configs.Runtime" {
			in.TaskTemplate.ContainerSpec.Configs[0].File = nil
		}
		out, _, err := ServiceFromDocker(in, nil)
		if text, ok := refused[name]; ok {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: want a refusal with %q, got %v", name, text, err)
			}
			return
		}
		if err != nil {
			t.Errorf("%s is neither kept nor in the list of what is refused: %v", name, err)
			return
		}
		back := ServiceSpecToDocker(out)
		got := getField(reflect.ValueOf(back), path)
		if !got.IsValid() || !reflect.DeepEqual(got.Interface(), want.Interface()) {
			t.Errorf("%s was dropped: sent %v, got back %v", name, show(want), show(got))
		}
	})
	for name := range refused {
		if !seen[name] {
			t.Errorf("%s is in the list of what is refused, and no field", name)
		}
	}
	if len(seen) < 120 {
		t.Errorf("only %d fields were looked at", len(seen))
	}
}

func show(v reflect.Value) string {
	if !v.IsValid() {
		return "nothing"
	}
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	return fmt.Sprintf("%#v", v.Interface())
}

// walkFields calls f for every field that holds a value of its own.
func walkFields(t reflect.Type, path []string, f func([]string, reflect.Type)) {
	for i := range t.NumField() {
		field := t.Field(i)
		at := append(slices.Clone(path), field.Name)
		if field.Anonymous {
			at = path
		}
		in := field.Type
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice && holdsStructs(in) {
			in = in.Elem()
		}
		if in.Kind() == reflect.Struct && in != reflect.TypeFor[netip.Addr]() && in != reflect.TypeFor[time.Time]() && in.NumField() > 0 {
			walkFields(in, at, f)
			continue
		}
		f(at, field.Type)
	}
}

func holdsStructs(t reflect.Type) bool {
	e := t.Elem()
	for e.Kind() == reflect.Pointer {
		e = e.Elem()
	}
	return e.Kind() == reflect.Struct && e != reflect.TypeFor[netip.Addr]()
}

// setField makes what is on the way to a field, sets it to a sample, and returns that.
func setField(t *testing.T, v reflect.Value, path, done []string) reflect.Value {
	f := v.FieldByName(path[0])
	done = append(done, path[0])
	name := strings.Join(done, ".")
	if len(path) == 1 {
		f.Set(sample(t, name, f.Type()))
		return f
	}
	for f.Kind() != reflect.Struct {
		switch f.Kind() {
		case reflect.Pointer:
			if f.IsNil() {
				f.Set(reflect.New(f.Type().Elem()))
			}
			f = f.Elem()
		case reflect.Slice:
			one := reflect.New(f.Type().Elem()).Elem()
			if w, ok := within[name]; ok {
				one.Set(copied(reflect.ValueOf(w)))
			}
			f.Set(reflect.Append(f, one))
			f = f.Index(0)
		}
	}
	return setField(t, f, path[1:], done)
}

// copied is a value that shares no pointer with another one, a level deep.
func copied(v reflect.Value) reflect.Value {
	if v.Kind() != reflect.Pointer {
		return v
	}
	out := reflect.New(v.Type().Elem())
	out.Elem().Set(v.Elem())
	if f := out.Elem().FieldByName("File"); f.IsValid() {
		file := reflect.New(f.Type().Elem())
		file.Elem().Set(f.Elem())
		f.Set(file)
	}
	return out
}

func getField(v reflect.Value, path []string) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice && len(path) > 0 {
		switch {
		case v.Kind() == reflect.Pointer && len(path) > 0:
			if v.IsNil() {
				return reflect.Value{}
			}
			v = v.Elem()
		case v.Kind() == reflect.Pointer:
			return v
		case v.Len() == 0:
			return reflect.Value{}
		default:
			v = v.Index(0)
		}
	}
	if len(path) == 0 {
		return v
	}
	return getField(v.FieldByName(path[0]), path[1:])
}

func sample(t *testing.T, name string, typ reflect.Type) reflect.Value {
	if s, ok := samples[name]; ok {
		v := reflect.New(typ).Elem()
		if typ.Kind() == reflect.Pointer {
			v.Set(reflect.New(typ.Elem()))
			v.Elem().Set(reflect.ValueOf(s).Convert(typ.Elem()))
			return v
		}
		v.Set(reflect.ValueOf(s).Convert(typ))
		return v
	}
	v := reflect.New(typ).Elem()
	switch typ.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(typ.Elem()))
		if typ.Elem().Kind() != reflect.Struct {
			v.Elem().Set(sample(t, name, typ.Elem()))
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(7)
	case reflect.Uint64, reflect.Uint32, reflect.Uint8:
		v.SetUint(7)
	case reflect.Float32:
		v.SetFloat(0.25)
	case reflect.Map:
		v.Set(reflect.MakeMap(typ))
		v.SetMapIndex(reflect.ValueOf("k"), reflect.ValueOf("v"))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(typ, 1, 1))
		v.Index(0).Set(sample(t, name, typ.Elem()))
	default:
		t.Fatalf("%s: no sample of type %s: give it one", name, typ)
	}
	return v
}

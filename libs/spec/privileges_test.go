package spec

import (
	"strings"
	"testing"

	skepv1 "skep.dev/proto/skep/v1"
)

// No node loads an AppArmor profile: what would promise one is refused, what says that there is none is true.
func TestAppArmorPromisesNothing(t *testing.T) {
	for mode, want := range map[string]string{"": "", "disabled": "", "default": "not confined by an AppArmor profile", "custom": "invalid apparmor mode"} {
		s := &skepv1.ServiceSpec{Name: "web", Task: &skepv1.TaskSpec{Container: &skepv1.ContainerSpec{Image: "a", Privileges: &skepv1.Privileges{ApparmorMode: mode}}}}
		Defaults(s)
		err := Validate(s)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", mode, err)
		}
	}
}

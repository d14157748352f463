package bus

import (
	"slices"
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/subject"
)

// The unlock key, and the door it goes through, are for admins: operators and viewers reach neither.
func TestWhoMayUnlock(t *testing.T) {
	may := func(role Role, subj string) bool {
		p := Permissions(role, "user-x", subject.Local).Publish
		if role != RoleLocal { // people ask on a subject of their own
			subj = subject.By(subj, "user-x", subject.Local)
		}
		in := func(list []string) bool {
			return slices.ContainsFunc(list, func(pattern string) bool { return subject.Matches(pattern, subj) })
		}
		return in(p.Allow) && !in(p.Deny)
	}
	for _, subj := range []string{api.AutolockKey.Subject(), api.VaultDoor.At("n").Subject(), api.VaultUnlock.At("n").Subject()} {
		for role, want := range map[Role]bool{RoleAdmin: true, RoleLocal: true, RoleOperator: false, RoleViewer: false} {
			if may(role, subj) != want {
				t.Errorf("%s may ask %s: %v", role, subj, !want)
			}
		}
	}
	for _, role := range []Role{RoleAdmin, RoleLocal, RoleOperator, RoleViewer} {
		if may(role, api.AutolockSet.Subject()) || may(role, api.VaultOpen.Subject()) {
			t.Errorf("%s may ask what managers ask one another", role)
		}
		if !may(role, api.AutolockGet.Subject()) {
			t.Errorf("%s may not look whether managers are locked", role)
		}
	}
}

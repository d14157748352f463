package bus

import (
	"testing"

	"skep.dev/libs/api"
	"skep.dev/libs/id"
	"skep.dev/libs/subject"
)

// TestUpgradeIsForAdmins: who gets a node to take a program is root there.
func TestUpgradeIsForAdmins(t *testing.T) {
	node, other := id.New(), id.New()
	bare := api.UpgradeOpen.At(node).Subject()
	for role, who := range map[Role]string{RoleWorker: other, RoleAgent: other, RoleJoiner: "join-x", RoleDoor: "door", RoleViewer: "user-u", RoleOperator: "user-u"} {
		p := Permissions(role, who, here).Publish
		for _, subj := range []string{bare, subject.By(bare, who, here), subject.By(bare, "user-u", here)} {
			if matches(p.Allow, subj) && !matches(p.Deny, subj) {
				t.Errorf("%s may publish to %s", role, subj)
			}
		}
	}
	// A worker does not hear what is sent to another one, either.
	if s := Permissions(RoleWorker, other, here).Subscribe; matches(s.Allow, bare) || matches(s.Allow, subject.IO(node, "s", "in")) {
		t.Error("a worker may hear another node's upgrade")
	}
	admin := Permissions(RoleAdmin, "user-u", here).Publish.Allow
	if !matches(admin, subject.By(bare, "user-u", here)) || matches(admin, subject.By(bare, "user-v", here)) || matches(admin, bare) {
		t.Error("an admin asks in his own name, and in no other")
	}
	if !matches(Permissions(RoleLocal, subject.LocalRoot, subject.Local).Publish.Allow, bare) {
		t.Error("root on a manager may not upgrade")
	}
}

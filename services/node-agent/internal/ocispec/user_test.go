package ocispec

import (
	"strings"
	"testing"
)

// An image's account files are a stranger's bytes: whatever they hold, there is a user or a sentence.
func FuzzLookupUser(f *testing.F) {
	const passwd, group = "root:x:0:0::/root:/bin/sh\napp:x:100:200::/:/bin/sh\n", "app:x:200:\nmore:x:300:app\n"
	f.Add("app", "more", passwd, group)
	f.Add("", "", "", "")
	f.Add("0:0", "300", passwd, group)
	f.Add("4294967296", "-1", passwd, group)
	f.Add("app:more", "none", "app:x:99999999999999999999:1", "more:x:-5:app")
	f.Add("a", "a", strings.Repeat(":", 10000), strings.Repeat("\x00\n", 1000))
	f.Fuzz(func(t *testing.T, who, extra, passwd, group string) {
		u, _, err := LookupUser(who, []string{extra}, []byte(passwd), []byte(group))
		if err != nil {
			return
		}
		for _, id := range append([]uint32{u.UID, u.GID}, u.AdditionalGids...) {
			if id > 1<<31-1 {
				t.Errorf("%q is %+v: an id the kernel takes for another", who, u)
			}
		}
	})
}

package doctor

import (
	"strings"
	"testing"
)

func TestBindsThatChanged(t *testing.T) {
	p := healthy(t)
	p.After.Tasks[0].ServiceId = "web-id"
	p.Before = p.After
	for _, c := range Examine(*p) {
		if strings.Contains(c.Text, "file system") {
			t.Errorf("nothing changed: %v", c)
		}
	}
	p.After.Tasks[0].Status.StaleBinds = []string{"/srv/data"}
	found := false
	for _, c := range Examine(*p) {
		found = found || c.Status == Warn && strings.Contains(c.Text, "web.1 on node w1 (/srv/data)") && strings.Contains(c.Text, "service update --force web")
	}
	if !found {
		t.Error("a source that changed is not told")
	}
}

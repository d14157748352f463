package containerdconf

import (
	"strings"
	"testing"
)

// Each folder is where it belongs, and nothing of the format is left.
func TestText(t *testing.T) {
	text := Text("/data", "/run/x")
	for _, want := range []string{
		"version = 3\nroot = \"/data/root\"\nstate = \"/run/x/containerd\"\n",
		"[grpc]\n  address = \"/run/x/containerd.sock\"\n", "[ttrpc]\n  address = \"/run/x/containerd.sock.ttrpc\"\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "%") {
		t.Errorf("it holds something of the format:\n%s", text)
	}
}

package deps

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// docs/contracts.md names every package that all may use.
func TestEveryLibIsNamed(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "contracts.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list(t, "./libs/...") {
		if name := strings.TrimPrefix(p.ImportPath, root); !strings.Contains(string(doc), name) {
			t.Errorf("docs/contracts.md does not say what %s is for", name)
		}
	}
}

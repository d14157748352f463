package entry

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSetting(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	secret := file("secret", "it's \\ one\n")
	for what, c := range map[string]struct {
		env   map[string]string
		value string
		given bool
		fails string
	}{
		"nothing":           {},
		"a value":           {env: map[string]string{"B": "x"}, value: "x", given: true},
		"a file":            {env: map[string]string{"B_FILE": secret}, value: `it's \ one`, given: true},
		"Windows' newlines": {env: map[string]string{"B_FILE": file("crlf", "pass\r\n")}, value: "pass", given: true},
		"the first name":    {env: map[string]string{"A_FILE": secret, "B": "other"}, value: `it's \ one`, given: true},
		"both":              {env: map[string]string{"B": "hush", "B_FILE": secret}, fails: "both B and B_FILE"},
		"no such file":      {env: map[string]string{"B_FILE": filepath.Join(dir, "none")}, fails: "B_FILE"},
		"a folder":          {env: map[string]string{"B_FILE": dir}, fails: "not a regular file"},
		"a zero byte":       {env: map[string]string{"B_FILE": file("zero", "a\x00b")}, fails: "zero byte"},
		"too large":         {env: map[string]string{"B_FILE": file("large", strings.Repeat("x", maxValue+1))}, fails: "at most"},
	} {
		t.Run(what, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			value, given, err := Setting("A", "B")
			if value != c.value || given != c.given {
				t.Errorf("%q %v", value, given)
			}
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("the value is in the error: %v", err)
			}
		})
	}
}

package typo

import "testing"

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b        string
		limit, want int
	}{
		{"web", "web", 3, 0}, {"web", "wob", 3, 1}, {"web", "wbe", 3, 1}, {"", "web", 3, 3}, {"web", "", 2, 3}, {"publish", "pubish", 2, 1},
		{"replicas", "replcias", 2, 1}, {"abcd", "dcba", 2, 3}, {"abcd", "dcba", 9, 3},
	} {
		if got := Distance(c.a, c.b, c.limit); got != c.want {
			t.Errorf("%q to %q within %d: %d, want %d", c.a, c.b, c.limit, got, c.want)
		}
	}
}

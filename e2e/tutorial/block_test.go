package tutorial

import (
	"strings"
	"testing"
)

func TestShapeIsWhatTwoWalksHaveInCommon(t *testing.T) {
	for _, two := range [][2]string{
		{"zvvqio71b696   web_server.1   w1   Running 5 seconds ago\nb5w75twv1c4b   web_server.2   m1   Running about a minute ago\n",
			"55w75twv1c4b   web_server.2   w2   Running less than a second ago\nil0t7t95tcvx   web_server.1   m1   Running 1 second ago"},
		{"10.90.0.200 - - [29/Nov/2026:23:46:04 +0000] \"GET / HTTP/1.1\" 200 45", "10.90.0.7 - - [01/Jan/2027:03:06:04 +0000] \"GET / HTTP/1.1\" 200 45"},
		{"64 bytes from 10.0.15.238: seq=0 ttl=64 time=0.095 ms", "64 bytes from 10.0.1.2: seq=0 ttl=64 time=1.5 ms"},
		{"g7967gxz6qdrvqnyodxiygdau     w2         Ready     Active                          d707f34\n", "g7967gxz6qdrvqnyodxiygda1 w1 Ready Active 1234567-dirty"},
	} {
		if a, b := Shape(two[0]), Shape(two[1]); a != b {
			t.Errorf("two shapes of the same:\n%s\n\n%s", a, b)
		}
	}
	if Shape("my_web   replicated   2/3") == Shape("my_web   replicated   3/3") {
		t.Error("2/3 and 3/3 look the same")
	}
}

func TestCompareFindsWhatDiffers(t *testing.T) {
	seen := []Block{{Kind: Title, Text: "3. Run"}, {Kind: Paragraph, Text: "Say."}, {Kind: Console, Host: "m1", Text: "skep ls", Output: "web 1/1\n"},
		{Kind: Console, Host: labHost, Text: "skep-lab kill w1"}, {Kind: Console, Host: "m1", Text: "date", Output: "now\n", Loose: true}}
	var doc strings.Builder
	if err := Write(&doc, [][]Block{seen}); err != nil {
		t.Fatal(err)
	}
	if diff := Compare(doc.String(), seen); diff != "" {
		t.Errorf("what was written differs from itself: %s", diff)
	}
	for what, change := range map[string]func(b []Block){
		"Other":   func(b []Block) { b[1].Text = "Other" },
		"skep rm": func(b []Block) { b[2].Text = "skep rm" },
		"web 0/1": func(b []Block) { b[2].Output = "web 0/1\n" },
	} {
		other := append([]Block(nil), seen...)
		change(other)
		if diff := Compare(doc.String(), other); !strings.Contains(diff, what) {
			t.Errorf("%s: %q", what, diff)
		}
	}
	other := append([]Block(nil), seen...)
	other[3].Text, other[4].Output = "skep-lab kill w2", "later\n"
	if diff := Compare(doc.String(), other); diff != "" {
		t.Errorf("what may differ does not count: %s", diff)
	}
}

package cli

import (
	"bytes"

	"skep.dev/services/skep/cli/plain"
	"skep.dev/services/skep/cli/render"
)

// section is a table of a screen, and what its rows are.
type section struct {
	what  string
	table *render.Table
}

// lines is how many lines the whole of it takes: its header, its rows, and an empty one. Without rows it is not shown.
func (s section) lines() int {
	if len(s.table.Rows) == 0 {
		return 0
	}
	return len(s.table.Rows) + 2
}

// leastLines: a part with fewer lines than a header, a row, the count of what is left out and an empty line is counted alone.
const leastLines = 4

// printSections writes sections below what b holds, in at most height lines altogether (0: as many as it takes). None takes from
// another what that one needs: what does not fit is counted.
func printSections(b *bytes.Buffer, sections []section, height int) {
	room := shares(sections, height-bytes.Count(b.Bytes(), []byte{'\n'}))
	for i, s := range sections {
		all := len(s.table.Rows)
		switch {
		case all == 0:
			continue
		case height > 0 && room[i] < min(s.lines(), leastLines):
			if room[i] > 0 {
				plain.Fprintf(b, "… %d more %s\n", all, s.what)
			}
			continue
		case height > 0 && room[i] < s.lines():
			s.table.Rows = s.table.Rows[:room[i]-leastLines+1]
		}
		_ = s.table.Print(b, "", false) // to memory
		if n := all - len(s.table.Rows); n > 0 {
			plain.Fprintf(b, "… %d more %s\n", n, s.what)
		}
		b.WriteByte('\n')
	}
}

// shares is how many of so many lines each section gets: those that need less than an equal part leave the rest to the others.
func shares(sections []section, lines int) []int {
	out := make([]int, len(sections))
	open := 0
	for _, s := range sections {
		if s.lines() > 0 {
			open++
		}
	}
	for given := true; given && open > 0; {
		given = false
		for i, s := range sections {
			if n := s.lines(); n > 0 && out[i] == 0 && n <= lines/open {
				out[i], lines, open, given = n, lines-n, open-1, true
			}
		}
	}
	for i, s := range sections {
		if s.lines() > 0 && out[i] == 0 {
			out[i] = max(lines, 0) / open
			lines, open = lines-out[i], open-1
		}
	}
	return out
}

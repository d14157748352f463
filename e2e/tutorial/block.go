package tutorial

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Kind of a block.
type Kind int

const (
	Title Kind = iota
	Paragraph
	Console // a command and what it printed
)

// Block is a piece of the tutorial as it was said or seen.
type Block struct {
	Kind   Kind
	Text   string // a paragraph, or a command, which may have several lines
	Host   string // where the command was typed
	Output string
	Loose  bool // the output differs from one time to the next
}

// labHost is where commands about the lab itself are typed.
const labHost = "lab"

// Markdown is the block as docs/tutorial.md has it.
func (b Block) Markdown() string {
	switch b.Kind {
	case Title:
		return "## " + b.Text + "\n"
	case Paragraph:
		return b.Text + "\n"
	}
	return fmt.Sprintf("```console\n%s# %s\n%s```\n", b.Host, b.Text, b.Output)
}

// longestOutput is how many lines of an output the tutorial shows.
const longestOutput = 40

// token is a join token, of which the document shows the beginning.
var token = regexp.MustCompile(`(SKEP-\d+-)[0-9a-z]+-[0-9a-z]+`)

// show writes down a command: what it printed, or why it was refused.
func (g *Guide) show(host string, o Output, loose bool) {
	out := o.Stdout
	if o.Code != 0 {
		out += o.Stderr
		if at := strings.Index(out, "Error: "); at > 0 { // before it, progress: other steps each time
			out = out[at:]
		}
	}
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \r")
	}
	if len(lines) > longestOutput {
		lines = append(lines[:longestOutput], "…")
	}
	out = strings.Join(lines, "\n")
	if out != "" {
		out += "\n"
	}
	g.add(Block{Kind: Console, Host: host, Text: token.ReplaceAllString(o.Line, "$1…"), Output: token.ReplaceAllString(out, "$1…"), Loose: loose})
}

func (g *Guide) add(b Block) {
	g.blocks = append(g.blocks, b)
	if g.narrate == nil {
		return
	}
	const bold, plain = "\x1b[1m", "\x1b[0m"
	switch b.Kind {
	case Title:
		fmt.Fprintf(g.narrate, "\n%s%s%s\n", bold, b.Text, plain)
	case Paragraph:
		fmt.Fprintf(g.narrate, "\n%s\n", b.Text)
	case Console:
		fmt.Fprintf(g.narrate, "\n%s# %s%s%s\n%s", b.Host, bold, b.Text, plain, b.Output)
	}
}

// Write writes the chapters as one document.
func Write(w io.Writer, chapters [][]Block) error {
	if _, err := io.WriteString(w, preface); err != nil {
		return err
	}
	for _, blocks := range chapters {
		for _, b := range blocks {
			if _, err := fmt.Fprintf(w, "\n%s", b.Markdown()); err != nil {
				return err
			}
		}
	}
	return nil
}

const preface = `# Tutorial

This is the road from three bare machines to a blog with its database: every chapter with its commands and what they print. The words and
flags are those of Docker's swarm mode, with ` + "`skep`" + ` in place of ` + "`docker`" + `.

` + "`make tutorial`" + ` walks this road on a lab of three hosts, m1, w1 and w2, and writes this file from what it saw; a test does the same and
compares. The prompt says on which machine a line is typed: ` + "`client`" + ` is a machine outside the cluster, ` + "`lab`" + ` the one that the lab
itself runs on. Ids, ages and addresses are other ones each time, and so is which node takes which task.
`

// What differs between two walks that saw the same.
var passing = []struct {
	is *regexp.Regexp
	as string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)?`), "TIME"},
	{regexp.MustCompile(`\d\d/[A-Z][a-z]{2}/\d{4}(:\d\d){3} [+-]\d{4}`), "TIME"}, // Apache's
	{regexp.MustCompile(`(?i)\b(less than a|about a|about an|\d+) (second|minute|hour)s?( ago)?\b`), "AGE"},
	{regexp.MustCompile(`(?m)\b(dev|[0-9a-f]{7,12}|v\d+\.\d+\.\d+\S*)(-dirty)?(-race)?$`), "VERSION"},
	{regexp.MustCompile(`\bsha256:[0-9a-f]{64}\b`), "DIGEST"},
	{regexp.MustCompile(`\b[0-9a-z]{25}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-z]*[0-9][0-9a-z]*[a-z][0-9a-z]*\b|\b[0-9a-z]{12}\b`), "ID"},
	{regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+(/\d+)?\b`), "ADDRESS"},
	{regexp.MustCompile(`\b(m|w)\d\b`), "HOST"},
	{regexp.MustCompile(`\b\d+\.\d+\b`), "N"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

// Shape is what two outputs have in common that tell the same: ids, ages, addresses and the order of lines do not count.
func Shape(out string) string {
	for _, p := range passing {
		out = p.is.ReplaceAllString(out, p.as)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Compare tells how what was seen differs from what the document says, "" if not.
func Compare(document string, seen []Block) string {
	var at string
	rest := document
	for _, b := range seen {
		want := b.Markdown()
		if b.Kind != Console {
			if _, after, ok := strings.Cut(rest, "\n"+want); ok {
				rest, at = after, b.Text
				continue
			}
			return fmt.Sprintf("after %q the document does not say\n%s", at, want)
		}
		line := b.Text + "\n"
		if b.Host == labHost { // which host dies depends on where tasks were
			line = line[:strings.LastIndex(line, " ")+1]
		}
		_, after, ok := strings.Cut(rest, fmt.Sprintf("\n```console\n%s# %s", b.Host, line))
		if !ok {
			return fmt.Sprintf("after %q the document has no\n%s# %s", at, b.Host, b.Text)
		}
		out, after, _ := strings.Cut(after, "```\n")
		if was, is := Shape(out), Shape(b.Output); !b.Loose && b.Host != labHost && was != is {
			return fmt.Sprintf("%s# %s\nThe document has, in short,\n%s\nand this was seen:\n%s\nin full\n%s", b.Host, b.Text, was, is, b.Output)
		}
		rest, at = after, b.Text
	}
	return ""
}

package tutorial

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"skep.dev/e2e/lab"
)

// Guide leads through a chapter: it says what comes, types it on a host, and looks at what it prints.
type Guide struct {
	Lab *lab.Lab

	ctx     context.Context
	narrate io.Writer
	blocks  []Block
	failed  error
	atEnd   []func()
}

// Output is what a command printed and how it ended.
type Output struct {
	lab.Result
	Line string
}

// Text is the output without blanks around it.
func (o Output) Text() string { return strings.TrimSpace(o.Stdout) }

// commandLimit is how long a command may take.
const commandLimit = 2 * time.Minute

func (g *Guide) title(ch Chapter) {
	g.add(Block{Kind: Title, Text: fmt.Sprintf("%d. %s", ch.Number, ch.Title)})
}

// Say tells the reader something, as a paragraph.
func (g *Guide) Say(text string) { g.add(Block{Kind: Paragraph, Text: text}) }

// Run types a line at m1 and wants it to work.
func (g *Guide) Run(line string) Output { return g.On("m1", line) }

// On types a line at a host and wants it to work.
func (g *Guide) On(host, line string) Output {
	o := g.do(host, line)
	g.show(host, o, false)
	g.Want(o.Code == 0, "%s: %s: exit status %d\n%s%s", host, line, o.Code, o.Stdout, o.Stderr)
	return o
}

// Glance is Run for a line whose output differs from one time to the next: the reader sees it, nobody compares it.
func (g *Guide) Glance(line string) Output {
	o := g.do("m1", line)
	g.show("m1", o, true)
	g.Want(o.Code == 0, "%s: exit status %d\n%s%s", line, o.Code, o.Stdout, o.Stderr)
	return o
}

// Refused types a line at a host that has to be refused with this exit status, for a reason that contains the words.
func (g *Guide) Refused(host string, code int, line string, words ...string) {
	o := g.do(host, line)
	g.show(host, o, false)
	g.wantRefused(o, code, words)
}

func (g *Guide) wantRefused(o Output, code int, words []string) {
	g.Want(o.Code == code, "%s: exit status %d, want %d\n%s%s", o.Line, o.Code, code, o.Stdout, o.Stderr)
	for _, w := range words {
		g.Want(strings.Contains(o.Stderr, w), "%s: want an error with %q, got: %s", o.Line, w, o.Stderr)
	}
}

// QuietlyRefused is Refused for what the reader need not see.
func (g *Guide) QuietlyRefused(host string, code int, line string, words ...string) {
	g.wantRefused(g.do(host, line), code, words)
}

// Until types a line at m1 over and over until its output satisfies check, which else says what is wrong; the reader sees the last.
func (g *Guide) Until(limit time.Duration, line string, check func(Output) string) Output {
	return g.UntilOn("m1", limit, line, check)
}

// UntilOn is Until at another host.
func (g *Guide) UntilOn(host string, limit time.Duration, line string, check func(Output) string) Output {
	var o Output
	g.Await(line, limit, func() string {
		o = g.do(host, line)
		if o.Code != 0 {
			return fmt.Sprintf("exit status %d: %s%s", o.Code, o.Stdout, o.Stderr)
		}
		return check(o)
	})
	g.show(host, o, false)
	return o
}

// Quietly types a line that the reader need not see, and wants it to work.
func (g *Guide) Quietly(host, line string) string {
	o := g.do(host, line)
	g.Want(o.Code == 0, "%s: %s: exit status %d\n%s%s", host, line, o.Code, o.Stdout, o.Stderr)
	return o.Text()
}

// Try is Quietly for a line that may fail.
func (g *Guide) Try(host, line string) Output { return g.do(host, line) }

func (g *Guide) do(host, line string) Output {
	ctx, cancel := context.WithTimeout(g.ctx, commandLimit)
	defer cancel()
	r, err := g.Lab.Run(ctx, host, "bash", "-c", line)
	if err != nil {
		g.stop(err)
	}
	if r.Took > 5*time.Second {
		g.Note("%.1f s: %s", r.Took.Seconds(), strings.SplitN(line, "\n", 2)[0])
	}
	return Output{r, line}
}

// Await looks again and again until check says "", and returns how long that took.
func (g *Guide) Await(what string, limit time.Duration, check func() string) time.Duration {
	began := time.Now()
	for {
		why := check()
		if why == "" {
			if took := time.Since(began); took > 5*time.Second {
				g.Note("%.1f s until: %s", took.Seconds(), strings.SplitN(what, "\n", 2)[0])
			}
			return time.Since(began)
		}
		if time.Since(began) > limit {
			g.stop(fmt.Errorf("%s: not within %s: %s", what, limit, why))
		}
		select {
		case <-g.ctx.Done():
			g.stop(fmt.Errorf("%s: %w", what, g.ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Want stops the chapter unless something is so.
func (g *Guide) Want(ok bool, format string, args ...any) {
	if !ok {
		g.stop(fmt.Errorf(format, args...))
	}
}

// Shows wants words in an output.
func (g *Guide) Shows(o Output, words ...string) {
	for _, w := range words {
		g.Want(strings.Contains(o.Stdout, w), "%s: want %q in\n%s%s", o.Line, w, o.Stdout, o.Stderr)
	}
}

// Then does something when the chapter ends, also when it fails.
func (g *Guide) Then(f func()) { g.atEnd = append(g.atEnd, f) }

// PowerOff cuts a host's power.
func (g *Guide) PowerOff(host string) {
	g.onTheLab("kill "+host, func() error { return g.Lab.Kill(g.ctx, host) })
}

// PowerOn switches a host on.
func (g *Guide) PowerOn(host string) {
	g.onTheLab("start "+host, func() error { return g.Lab.Start(g.ctx, host) })
}

func (g *Guide) onTheLab(what string, f func() error) {
	g.add(Block{Kind: Console, Host: labHost, Text: "skep-lab " + what})
	if err := f(); err != nil {
		g.stop(err)
	}
}

// Note tells who runs the chapter something that no reader of the document needs: a measurement.
func (g *Guide) Note(format string, args ...any) {
	if g.narrate != nil {
		fmt.Fprintf(g.narrate, "(%s)\n", fmt.Sprintf(format, args...))
	}
}

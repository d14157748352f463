// Command skep-tutorial walks through the tutorial on a lab of its own, shows each command and its output, and writes what it saw as a
// document. It needs root, as every lab does.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"skep.dev/e2e/lab"
	"skep.dev/e2e/tutorial"
	"skep.dev/libs/atomicfile"
)

func main() {
	out := flag.String("o", "", "file to write the document to, when every chapter went well")
	from := flag.Int("from", 1, "begin with this chapter, and write nothing")
	to := flag.Int("to", 99, "end with this chapter, and write nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *out, *from, *to)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "skep-tutorial:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, first, last int) (err error) {
	o := tutorial.Options("tutorial")
	o.Progress = os.Stderr
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	began := time.Now()
	var seen [][]tutorial.Block
	for _, ch := range tutorial.Chapters {
		if ch.Number < first || ch.Number > last {
			continue
		}
		from := time.Now()
		blocks, err := ch.Walk(ctx, l, os.Stdout)
		if err != nil {
			return err
		}
		fmt.Printf("\n(chapter %d: %.0f s)\n", ch.Number, time.Since(from).Seconds())
		seen = append(seen, blocks)
	}
	fmt.Printf("\nThat was the tutorial, in %.0f s.\n", time.Since(began).Seconds())
	if out == "" || len(seen) < len(tutorial.Chapters) {
		return nil
	}
	return save(out, seen)
}

// save replaces the document in one step.
func save(file string, seen [][]tutorial.Block) error {
	var doc bytes.Buffer
	if err := tutorial.Write(&doc, seen); err != nil {
		return err
	}
	if err := atomicfile.Write(file, doc.Bytes()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

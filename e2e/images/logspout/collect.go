package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// longest is how much of a line is read, in bytes; the agent cuts lines at 16 KiB.
const longest = 32 << 10

// collector reads what the agent's log files gained since last time.
type collector struct {
	dir  string
	self string           // the name of its own container, which it leaves out
	at   map[string]int64 // file → bytes read
	hear func(line string)
}

// collect reads once through all files. A file that cannot be read is tried again next time.
func (c *collector) collect() {
	files, _ := filepath.Glob(filepath.Join(c.dir, "*", "logs", "*.log")) // the pattern is a good one
	for _, f := range files {
		name := c.name(filepath.Dir(filepath.Dir(f)))
		if name == c.self {
			continue
		}
		if n, err := c.read(f, name); err == nil {
			c.at[f] += n
		}
	}
}

// name is the container's host name, or the task's id.
func (c *collector) name(task string) string {
	b, err := os.ReadFile(filepath.Join(task, "etc", "hostname"))
	if err != nil {
		return filepath.Base(task)
	}
	return strings.TrimSpace(string(b))
}

// read hears the complete lines that follow those read before, and returns how many bytes they have.
func (c *collector) read(file, name string) (n int64, err error) {
	in, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if _, err := in.Seek(c.at[file], io.SeekStart); err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(in, longest)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return n, nil // the rest of the line comes later
		}
		n += int64(len(line))
		// A record is "time stream text"; the other lines are the agent's own.
		if _, rest, ok := bytes.Cut(line, []byte(" ")); ok && len(rest) > 2 && bytes.IndexByte([]byte("oeOE"), rest[0]) >= 0 && rest[1] == ' ' {
			c.hear(name + "|" + string(rest[2:]))
		}
	}
}

package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Entry is one line, with its newline, or a part of a very long one.
type Entry struct {
	Time    int64 // unix nanoseconds
	Stderr  bool
	Partial bool
	Line    []byte
}

// encode writes "<nanoseconds> <o|e|O|E> <text>\n"; the capitals are parts.
func encode(b *bytes.Buffer, at int64, stderr, partial bool, text []byte) {
	var num [20]byte
	b.Write(strconv.AppendInt(num[:0], at, 10))
	flag := byte('o')
	if stderr {
		flag = 'e'
	}
	if partial {
		flag -= 'a' - 'A'
	}
	b.WriteByte(' ')
	b.WriteByte(flag)
	b.WriteByte(' ')
	b.Write(text)
	b.WriteByte('\n')
}

func decode(line []byte) (Entry, bool) {
	i := bytes.IndexByte(line, ' ')
	if i < 1 || len(line) < i+3 {
		return Entry{}, false
	}
	at, err := strconv.ParseInt(string(line[:i]), 10, 64)
	if err != nil {
		return Entry{}, false
	}
	e := Entry{Time: at, Line: line[i+3:]}
	switch line[i+1] {
	case 'O':
		e.Partial = true
	case 'E':
		e.Partial, e.Stderr = true, true
	case 'e':
		e.Stderr = true
	case 'o':
	default:
		return Entry{}, false
	}
	if !e.Partial {
		e.Line = append(e.Line[:len(e.Line):len(e.Line)], '\n')
	}
	return e, true
}

func fileName(dir string, seq int) string { return filepath.Join(dir, fmt.Sprintf("%08d.log", seq)) }

func list(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list log files: %w", err)
	}
	var out []int
	for _, e := range entries {
		if n, ok := strings.CutSuffix(e.Name(), ".log"); ok {
			if seq, err := strconv.Atoi(n); err == nil {
				out = append(out, seq)
			}
		}
	}
	sort.Ints(out)
	return out, nil
}

// Query says which lines.
type Query struct {
	Follow         bool
	Tail           int64 // negative = all
	Since, Until   int64 // unix nanoseconds, 0 = open
	Stdout, Stderr bool  // neither = both
}

func (q Query) wants(e Entry) bool {
	if q.Since != 0 && e.Time < q.Since || q.Until != 0 && e.Time > q.Until {
		return false
	}
	return q.Stdout == q.Stderr || e.Stderr == q.Stderr
}

// Read gives the lines of a task to emit, in order, and calls idle whenever it has to wait for more. With Follow it
// goes on until the task's output ends or ctx does.
func (k *Keeper) Read(ctx context.Context, id, dir string, q Query, emit func(Entry) error, idle func() error) error {
	k.mu.Lock()
	live := k.tasks[id]
	k.mu.Unlock()
	dir = folder(dir)
	seq, off, err := start(dir, q)
	if err != nil {
		return err
	}
	var rest []byte
	var file *os.File
	defer func() {
		if file != nil {
			_ = file.Close() // only read
		}
	}()
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		var changed <-chan struct{}
		ended := true
		if live != nil {
			changed, ended = live.news() // before reading: what comes after is not missed
		}
		if file == nil {
			if file, seq, err = next(dir, seq); err != nil {
				return err
			}
			if file != nil && off > 0 {
				if _, err := file.Seek(off, io.SeekStart); err != nil {
					return fmt.Errorf("read log: %w", err)
				}
			}
			off = 0
		}
		n := 0
		if file != nil {
			if n, err = file.Read(buf); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read log: %w", err)
			}
		}
		if n > 0 {
			rest = append(rest, buf[:n]...)
			for {
				i := bytes.IndexByte(rest, '\n')
				if i < 0 {
					break
				}
				e, ok := decode(rest[:i])
				if ok && q.wants(e) {
					if err := emit(e); err != nil {
						return err
					}
				}
				if ok && q.Until != 0 && e.Time > q.Until {
					return nil
				}
				rest = rest[i+1:]
			}
			rest = append([]byte(nil), rest...)
			continue
		}
		if file != nil {
			if seqs, err := list(dir); err != nil {
				return err
			} else if len(seqs) > 0 && seqs[len(seqs)-1] > seq {
				_ = file.Close() // only read
				file, rest = nil, nil
				seq++
				continue
			}
		}
		if !q.Follow || ended {
			return nil
		}
		if err := idle(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	return ctx.Err()
}

// next opens the oldest file from seq on that is still there.
func next(dir string, seq int) (*os.File, int, error) {
	for {
		seqs, err := list(dir)
		if err != nil {
			return nil, seq, err
		}
		i := sort.SearchInts(seqs, seq)
		if i == len(seqs) {
			return nil, seq, nil
		}
		f, err := os.Open(fileName(dir, seqs[i]))
		if errors.Is(err, os.ErrNotExist) {
			continue // rotated away just now
		}
		if err != nil {
			return nil, seq, fmt.Errorf("open log: %w", err)
		}
		return f, seqs[i], nil
	}
}

// start finds where the last q.Tail lines begin.
func start(dir string, q Query) (seq int, off int64, err error) {
	if q.Tail < 0 {
		return 0, 0, nil
	}
	seqs, err := list(dir)
	if err != nil || len(seqs) == 0 {
		return 0, 0, err
	}
	left := q.Tail
	for i := len(seqs) - 1; i >= 0; i-- {
		b, err := os.ReadFile(fileName(dir, seqs[i])) // bounded by max-size
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return 0, 0, fmt.Errorf("read log: %w", err)
		}
		end := bytes.LastIndexByte(b, '\n') + 1
		if left == 0 {
			return seqs[i], int64(end), nil
		}
		for end > 0 {
			begin := bytes.LastIndexByte(b[:end-1], '\n') + 1
			// A part belongs to the line it is a part of.
			if e, ok := decode(b[begin : end-1]); ok && q.wants(e) && !e.Partial {
				if left == 0 {
					return seqs[i], int64(end), nil
				}
				left--
			}
			end = begin
		}
	}
	return 0, 0, nil
}

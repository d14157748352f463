package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/minio/highwayhash"

	"skep.dev/libs/atomicfile"
)

// nats-server looks at few of its checksums when it starts: the last of each block. A block whose middle was altered on the disk
// is found when somebody reads there, or cut off at that place and said to be a shorter stream; one whose description is
// altered is left out, as if the stream had never been. With copies elsewhere that goes unnoticed until this server leads the
// stream. So everything is summed up before the server starts: about a second for a gigabyte.
//
// A record in a block: length (the highest bit says that it has headers), sequence, time, length of the subject; the subject;
// the length of the headers if there are any, headers, body; a sum of all of it but the lengths.
const (
	recordHead = 4 + 8 + 8 + 2
	recordSum  = highwayhash.Size64
	withHeader = 1 << 31
	// recordMost is where nats-server takes a length for nonsense.
	recordMost = 32 << 20
)

// damage is a file of a store that is not what was written.
type damage struct {
	File string
	What string
}

func (d damage) String() string { return d.File + ": " + d.What }

// damages sums up a server's store. What a write that a crash cut off left at the end of a log is none: nobody was told that it is
// stored, and the server removes it.
func damages(dir string) (found []damage, err error) {
	for _, pattern := range []string{"jetstream/*/streams/*", "jetstream/*/_js_/*"} {
		stores, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, store := range stores {
			list, err := logDamages(store)
			if err != nil {
				return nil, fmt.Errorf("check the store: %w", err)
			}
			found = append(found, list...)
		}
	}
	return found, nil
}

// logDamages looks at one stream, or at the log of one group: its description, its blocks, its snapshots.
func logDamages(dir string) (found []damage, err error) {
	name := filepath.Base(dir)
	if name[0] == '.' { // being removed
		return nil, nil
	}
	d, err := describedWrong(dir, name)
	if err != nil {
		return nil, err
	}
	if d != nil {
		found = append(found, *d)
	}
	blocks, err := numbered(filepath.Join(dir, "msgs"), "%d.blk")
	if err != nil {
		return nil, err
	}
	for i, n := range blocks {
		path := filepath.Join(dir, "msgs", fmt.Sprintf("%d.blk", n))
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if what := blockWrong(b, fmt.Sprintf("%s-%d", name, n), i == len(blocks)-1); what != "" {
			found = append(found, damage{path, what})
		}
	}
	snaps, err := filepath.Glob(filepath.Join(dir, "snapshots", "snap.*"))
	if err != nil {
		return nil, err
	}
	for _, path := range snaps {
		if filepath.Ext(path) == ".tmp" {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if n := len(b) - recordSum; n < 0 || !bytes.Equal(sum(name, b[:n]), b[n:]) {
			found = append(found, damage{path, "its sum is wrong"})
		}
	}
	return found, nil
}

// describedWrong compares a store's description with its sum, which is a file of its own. A crash between the two writes leaves
// a whole description with the sum of the one before: the sum is written again, or the server would leave the stream out.
func describedWrong(dir, name string) (*damage, error) {
	path, sumPath := filepath.Join(dir, "meta.inf"), filepath.Join(dir, "meta.sum")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // made, and nothing written yet
	}
	if err != nil {
		return nil, err
	}
	want, err := os.ReadFile(sumPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	is := hex.EncodeToString(sum(name, text))
	if is == string(want) {
		return nil, nil
	}
	var described struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(text, &described) != nil || described.Name != name {
		return &damage{path, "it is not the description that was written"}, nil
	}
	return nil, atomicfile.WriteSync(sumPath, []byte(is))
}

// blockWrong says what is wrong with a block of messages, "" when nothing is. The last of a log may end within a record.
func blockWrong(b []byte, name string, last bool) string {
	h := hashOf(name)
	for at := 0; at < len(b); {
		n, ok := recordAt(b, at, h)
		if ok {
			at += n
			continue
		}
		if last && cutOff(b, at, h) {
			return ""
		}
		return fmt.Sprintf("the record at byte %d of %d is not what was written", at, len(b))
	}
	return ""
}

// recordAt is the length of the record at a place, and whether it is whole.
func recordAt(b []byte, at int, h hash.Hash) (length int, ok bool) {
	if at+recordHead > len(b) {
		return 0, false
	}
	head := b[at : at+recordHead]
	size, subj := binary.LittleEndian.Uint32(head), int(binary.LittleEndian.Uint16(head[20:]))
	headers := size&withHeader != 0
	length = int(size &^ withHeader)
	before := subj
	if headers {
		before += 4
	}
	if length > recordMost || at+length > len(b) || length < recordHead+before+recordSum {
		return length, false
	}
	data := b[at+recordHead : at+length]
	end := len(data) - recordSum
	h.Reset()
	_, _ = h.Write(head[4:20]) // a hash takes everything
	_, _ = h.Write(data[:subj])
	_, _ = h.Write(data[before:end])
	return length, bytes.Equal(h.Sum(nil), data[end:])
}

// cutOff reports whether what is left of a block is the beginning of one record, or room that was never written to: what a
// crash leaves of a write. Where a whole record follows, or the record ends before the block does, its bytes were altered.
func cutOff(b []byte, at int, h hash.Hash) bool {
	rest := b[at:]
	if len(bytes.Trim(rest, "\x00")) == 0 {
		return true
	}
	if len(rest) >= recordHead {
		size := binary.LittleEndian.Uint32(rest) &^ withHeader
		if size < recordHead+recordSum || size > recordMost || int(size) <= len(rest) {
			return false
		}
	}
	for next := at + 1; next+recordHead+recordSum <= len(b); next++ {
		if _, ok := recordAt(b, next, h); ok {
			return false
		}
	}
	return true
}

// numbered are the numbers of the files of a directory whose names are a number in a pattern, in order.
func numbered(dir, pattern string) (out []int, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range list {
		var n int
		if _, serr := fmt.Sscanf(e.Name(), pattern, &n); serr == nil && e.Name() == fmt.Sprintf(pattern, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, err
}

// sum is what nats-server keeps beside the data of something of that name.
func sum(name string, data []byte) []byte {
	h := hashOf(name)
	_, _ = h.Write(data)
	return h.Sum(nil)
}

// hashOf is the hash that nats-server sums up a thing of that name with.
func hashOf(name string) hash.Hash {
	key := sha256.Sum256([]byte(name))
	h, err := highwayhash.New64(key[:])
	if err != nil {
		panic(err) // it takes keys of 32 bytes, and this is one
	}
	return h
}

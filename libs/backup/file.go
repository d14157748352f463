package backup

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/protobuf/encoding/protojson"

	pb "skep.dev/proto/skep/v1"
)

// Format is the version of the file that is written, and the only one that is read.
const Format = 1

const (
	magic     = "skep backup 1\n"
	anyMagic  = "skep backup "
	chunkSize = 64 << 10
	maxHeader = 64 << 10
	maxLock   = 256
)

// nonce numbers a chunk.
type nonce [chacha20poly1305.NonceSize]byte

func (n *nonce) next() error {
	c := binary.BigEndian.Uint64(n[3:11]) + 1
	if c == 0 {
		return errors.New("the backup is too large")
	}
	binary.BigEndian.PutUint64(n[3:11], c)
	return nil
}

func (n nonce) of(last bool) []byte {
	if last {
		n[11] = 1
	}
	return n[:]
}

// writer seals what is written into chunks.
type writer struct {
	w    io.Writer
	aead cipher.AEAD
	n    nonce
	buf  []byte
	out  []byte
}

// newWriter writes the beginning of a file. Close writes its end.
func newWriter(w io.Writer, h *pb.BackupHeader, k Key) (*writer, error) {
	h.Format = Format
	text, err := protojson.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("write a backup: %w", err)
	}
	if len(text) > maxHeader {
		return nil, fmt.Errorf("write a backup: its header has %d bytes, %d fit", len(text), maxHeader)
	}
	head := binary.BigEndian.AppendUint32([]byte(magic), uint32(len(text)))
	head = append(head, text...)
	sum := sha256.Sum256(head)
	key := make([]byte, chacha20poly1305.KeySize)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("write a backup: %w", err)
	}
	lock, err := k.seal(key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("write a backup: %w", err)
	}
	head = append(head, sum[:]...)
	head = binary.BigEndian.AppendUint16(head, uint16(len(lock)))
	out := &writer{w: w, buf: make([]byte, 0, chunkSize), out: make([]byte, 0, chunkSize+chacha20poly1305.Overhead)}
	if out.aead, err = chacha20poly1305.New(key); err != nil {
		return nil, fmt.Errorf("write a backup: %w", err)
	}
	_, err = w.Write(append(head, lock...))
	return out, err
}

func (w *writer) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if len(w.buf) == chunkSize { // there is more, so it is not the last
			if err := w.flush(false); err != nil {
				return 0, err
			}
		}
		take := min(len(b), chunkSize-len(w.buf))
		w.buf, b = append(w.buf, b[:take]...), b[take:]
	}
	return n, nil
}

func (w *writer) Close() error { return w.flush(true) }

func (w *writer) flush(last bool) error {
	w.out = w.aead.Seal(w.out[:0], w.n.of(last), w.buf, nil)
	w.buf = w.buf[:0]
	if _, err := w.w.Write(w.out); err != nil {
		return err
	}
	return w.n.next()
}

// File is a backup whose beginning was read.
type File struct {
	Header *pb.BackupHeader
	sum    [sha256.Size]byte
	lock   []byte
	r      io.Reader
}

// Open reads a file's beginning, in clear: nothing of it is proven until a key has opened the file.
func Open(r io.Reader) (*File, error) {
	head := make([]byte, len(magic)+4)
	if n, err := io.ReadFull(r, head); err != nil {
		if n >= len(anyMagic) && string(head[:len(anyMagic)]) == anyMagic {
			return nil, damaged("it ends in its first line")
		}
		return nil, ErrForeign
	}
	switch {
	case string(head[:len(magic)]) == magic:
	case string(head[:len(anyMagic)]) == anyMagic:
		return nil, fmt.Errorf("the backup is of form %q, this skep reads form %d: take the skep that made it, or a newer one", head[len(anyMagic):len(magic)-1], Format)
	default:
		return nil, ErrForeign
	}
	size := binary.BigEndian.Uint32(head[len(magic):])
	if size > maxHeader {
		return nil, damaged("its header would have %d bytes", size)
	}
	rest := make([]byte, int(size)+sha256.Size+2)
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, damaged("it ends in its header")
	}
	f := &File{r: r, Header: &pb.BackupHeader{}}
	head = append(head, rest[:size]...)
	f.sum = sha256.Sum256(head)
	if string(f.sum[:]) != string(rest[size:int(size)+sha256.Size]) {
		return nil, damaged("its header does not fit its checksum")
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(rest[:size], f.Header); err != nil || f.Header.Format != Format {
		return nil, damaged("its header cannot be read")
	}
	if (f.Header.Passphrase == nil) == (f.Header.UnlockKey == nil) {
		return nil, damaged("it does not say which key opens it")
	}
	f.lock = make([]byte, binary.BigEndian.Uint16(rest[int(size)+sha256.Size:]))
	if len(f.lock) > maxLock {
		return nil, damaged("its lock would have %d bytes", len(f.lock))
	}
	if _, err := io.ReadFull(r, f.lock); err != nil {
		return nil, damaged("it ends in its lock")
	}
	return f, nil
}

// Unlock opens the file with a key; what follows can be read then.
func (f *File) Unlock(k Key) (*Reader, error) {
	key, err := k.open(f.lock, f.sum[:])
	if err != nil || len(key) != chacha20poly1305.KeySize {
		return nil, fmt.Errorf("%w: %s does", ErrKey, Opener(f.Header))
	}
	defer clear(key)
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, err
	}
	return newReader(&opener{r: f.r, aead: aead, in: make([]byte, 0, chunkSize+2*chacha20poly1305.Overhead)}), nil
}

// opener reads chunks.
type opener struct {
	r     io.Reader
	aead  cipher.AEAD
	n     nonce
	in    []byte // what was read and not opened: at most a chunk and one byte, which tells that another follows
	clear []byte
	buf   []byte
	ended bool
	err   error
}

func (o *opener) Read(b []byte) (int, error) {
	for len(o.clear) == 0 {
		if o.err != nil {
			return 0, o.err
		}
		if o.ended {
			return 0, io.EOF
		}
		o.err = o.chunk()
	}
	n := copy(b, o.clear)
	o.clear = o.clear[n:]
	return n, nil
}

func (o *opener) chunk() error {
	const full = chunkSize + chacha20poly1305.Overhead
	have := len(o.in)
	o.in = o.in[:full+1]
	n, err := io.ReadFull(o.r, o.in[have:])
	o.in = o.in[:have+n]
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read the backup: %w", err)
	}
	last := len(o.in) <= full
	sealed := o.in[:min(len(o.in), full)]
	opened, err := o.aead.Open(o.buf[:0], o.n.of(last), sealed, nil)
	switch {
	case err != nil && last:
		return damaged("part %d, its last, does not open", binary.BigEndian.Uint64(o.n[3:11])+1)
	case err != nil:
		return damaged("part %d does not open", binary.BigEndian.Uint64(o.n[3:11])+1)
	}
	o.buf, o.clear, o.ended = opened, opened, last
	o.in = o.in[:copy(o.in, o.in[len(sealed):])]
	return o.n.next()
}

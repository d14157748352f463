package backup

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"

	"skep.dev/libs/kv"
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// maxRecord bounds a record: a value of the store and its key.
const maxRecord = kv.MaxValue + 64<<10

// Writer writes a backup: Master, then each bucket with its entries, then Close.
type Writer struct {
	w       *writer
	entries uint64
	bytes   uint64
}

// NewWriter begins a backup. The header's format is filled in.
func NewWriter(w io.Writer, h *pb.BackupHeader, k Key) (*Writer, error) {
	f, err := newWriter(w, h, k)
	if err != nil {
		return nil, err
	}
	return &Writer{w: f}, nil
}

func (w *Writer) record(r *pb.BackupRecord) error {
	if _, err := protodelim.MarshalTo(w.w, r); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// Master writes the master key.
func (w *Writer) Master(key []byte) error {
	return w.record(&pb.BackupRecord{Record: &pb.BackupRecord_Master{Master: key}})
}

// Bucket begins a bucket.
func (w *Writer) Bucket(b subject.Bucket, sequence uint64) error {
	return w.record(&pb.BackupRecord{Record: &pb.BackupRecord_Bucket{Bucket: &pb.BackupBucket{Name: string(b), Sequence: sequence}}})
}

// Entry writes an entry of the bucket.
func (w *Writer) Entry(e kv.Entry) error {
	w.entries++
	w.bytes += uint64(len(e.Value))
	return w.record(&pb.BackupRecord{Record: &pb.BackupRecord_Entry{Entry: &pb.BackupEntry{Key: e.Key, Value: e.Value, Revision: e.Revision}}})
}

// Close writes the end, without which a backup is none.
func (w *Writer) Close() error {
	if err := w.record(&pb.BackupRecord{Record: &pb.BackupRecord_End{End: &pb.BackupEnd{Entries: w.entries, Bytes: w.bytes}}}); err != nil {
		return err
	}
	if err := w.w.Close(); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// Reader reads a backup's records.
type Reader struct{ r *bufio.Reader }

func newReader(r io.Reader) *Reader { return &Reader{bufio.NewReaderSize(r, chunkSize)} }

// Visit is who hears what is in a backup, in the order of the file. A nil function is not called.
type Visit struct {
	Master func(key []byte) error
	Bucket func(b subject.Bucket, sequence uint64) error
	Entry  func(b subject.Bucket, e kv.Entry) error
}

// Each goes through the backup to its end. When it returns nil, all that was written was read, unaltered.
func (r *Reader) Each(v Visit) error {
	var bucket subject.Bucket
	var entries, bytes, revision uint64
	seen := map[subject.Bucket]bool{}
	mastered := false
	for {
		var rec pb.BackupRecord
		err := protodelim.UnmarshalOptions{MaxSize: maxRecord}.UnmarshalFrom(r.r, &rec)
		switch {
		case errors.Is(err, ErrDamaged):
			return err
		case err != nil:
			return damaged("its content ends before its end: %v", err)
		}
		switch x := rec.Record.(type) {
		case *pb.BackupRecord_Master:
			if mastered || bucket != "" || len(x.Master) == 0 {
				return damaged("the master key is not where it should be")
			}
			mastered = true
			if v.Master != nil {
				err = v.Master(x.Master)
			}
		case *pb.BackupRecord_Bucket:
			bucket, revision = subject.Bucket(x.Bucket.Name), 0
			if !mastered || !Kept(bucket) || seen[bucket] {
				return damaged("bucket %q should not be there", x.Bucket.Name)
			}
			seen[bucket] = true
			if v.Bucket != nil {
				err = v.Bucket(bucket, x.Bucket.Sequence)
			}
		case *pb.BackupRecord_Entry:
			if bucket == "" || x.Entry.Revision <= revision || !KeptKey(bucket, x.Entry.Key) {
				return damaged("entry %q should not be there", x.Entry.Key)
			}
			revision = x.Entry.Revision
			entries++
			bytes += uint64(len(x.Entry.Value))
			if v.Entry != nil {
				err = v.Entry(bucket, kv.Entry{Key: x.Entry.Key, Value: x.Entry.Value, Revision: x.Entry.Revision})
			}
		case *pb.BackupRecord_End:
			if len(seen) != len(Buckets()) || x.End.Entries != entries || x.End.Bytes != bytes {
				return damaged("it should hold %d entries with %d bytes, and holds %d with %d", x.End.Entries, x.End.Bytes, entries, bytes)
			}
			if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
				return damaged("something follows its end")
			}
			return nil
		default:
			return damaged("it holds a record of a kind that this version does not know")
		}
		if err != nil {
			return err
		}
	}
}

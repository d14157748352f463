package stream

import (
	"context"
	"io"
	"testing"
)

func BenchmarkThroughput(b *testing.B) {
	s := broker(b)
	serve(b, connect(b, s), func(_ context.Context, ss *Session, _ []byte) {
		_, err := io.Copy(io.Discard, ss.Reader(In))
		_ = ss.Exit(0, err)
	})
	c := dial(b, connect(b, s))
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := c.Writer(In).Write(p); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.Writer(In).Close()
	_, _ = c.Wait()
}

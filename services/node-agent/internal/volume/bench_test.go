package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
)

// What a volume costs the start and the end of a task.
func BenchmarkAttachAndRelease(b *testing.B) {
	for name, opts := range map[string]map[string]string{"plain": nil, "mounted": tmpfs} {
		b.Run(name, func(b *testing.B) {
			s, err := Open(Config{Root: filepath.Join(b.TempDir(), "v"), Node: "n1"})
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			for i := range b.N {
				task := fmt.Sprint("t", i)
				if _, err := s.Attach(ctx, task, Wanted{Name: "v", Options: opts}); err != nil {
					b.Fatal(err)
				}
				if err := s.Release(ctx, task); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

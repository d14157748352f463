package compose

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// A stack of twenty services, as a deploy reads it.
func BenchmarkLoadTwentyServices(b *testing.B) {
	var text strings.Builder
	text.WriteString("services:\n")
	for i := range 20 {
		fmt.Fprintf(&text, "  s%d:\n    image: example/s%[1]d:${TAG:-1}\n    command: serve --port 80\n    environment: {A: x, B: '${B}'}\n    ports: ['%d:80']\n    networks: [n]\n    volumes: ['vol:/v']\n    depends_on: [s0x]\n    deploy: {replicas: 3, resources: {limits: {cpus: '0.5', memory: 64M}}}\n", i, 8000+i)
	}
	text.WriteString("  s0x: {image: 'i:1', networks: [n]}\nnetworks: {n: }\nvolumes: {vol: }\n")
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(context.Background(), Options{Files: []string{"-"}, Stdin: strings.NewReader(text.String()), Dir: dir, Stack: "s", Env: []string{"B=b"}}); err != nil {
			b.Fatal(err)
		}
	}
}

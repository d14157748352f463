// Command skep-images writes the images by which deploy/compose.yaml runs a node, as archives for `docker load` and
// `skep image load`: `make images`. No registry and no Docker Engine takes part.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"skep.dev/e2e/images"
	"skep.dev/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skep-images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("skep-images", flag.ContinueOnError)
	out := fs.String("o", "images", "the folder to write the archives to")
	r := images.Release{}
	fs.StringVar(&r.Version, "version", "dev", "version of skep: the tag of its images")
	fs.StringVar(&r.Commit, "commit", "none", "commit of skep")
	fs.StringVar(&r.Containerd, "containerd", "", "version of containerd: the tag of its image")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if r.Containerd = strings.TrimPrefix(r.Containerd, "v"); r.Containerd == "" {
		return fmt.Errorf("-containerd is missing: give CONTAINERD_VERSION of deploy/versions.env")
	}
	bin, err := lab.FindBin("")
	if err != nil {
		return err
	}
	in, err := lab.Inputs(bin)
	if err != nil {
		return err
	}
	r.Tools = filepath.Join(bin, "tools")
	imgs, err := images.Suite(ctx, in, r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return fmt.Errorf("make the folder of the archives: %w", err)
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 3, ' ', 0)
	total := int64(0)
	for _, img := range imgs {
		name, _, _ := strings.Cut(img.Name, ":")
		file := filepath.Join(*out, name+".tar")
		if err := images.WriteArchive(file, img); err != nil {
			return err
		}
		st, err := os.Stat(file)
		if err != nil {
			return err
		}
		total += st.Size()
		fmt.Fprintf(table, "%s\t%s\t%.1f MB\n", file, img.Name, float64(st.Size())/1e6)
	}
	fmt.Fprintf(table, "together\t\t%.1f MB\n", float64(total)/1e6)
	return table.Flush()
}

// Command skep-volumed is a volume plug-in for the lab: a real process on every host that speaks Docker's protocol and keeps
// its volumes in a folder that all hosts share. Like the block devices of a cloud, a volume is attached to one host at a time,
// and a host that died keeps it until it is cut off:
//
//	skep-volumed -store DIR -host NAME -name rexray    serve at /run/docker/plugins/rexray.sock
//	skep-volumed -store DIR force-detach HOST          what the fencing of a cloud's storage does
//	skep-volumed -store DIR ls                         volumes and the hosts they are attached to
//
// A file in the folder of faults, named after a call (Mount, Get, Activate, …), says what goes wrong with it; see faults.go.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/docker/go-plugins-helpers/volume"
)

func main() {
	var o options
	flag.StringVar(&o.name, "name", "rexray", "the plug-in's name")
	flag.StringVar(&o.store, "store", "", "folder of the volumes, shared between hosts")
	flag.StringVar(&o.host, "host", "", "name of this host (default: its host name)")
	flag.StringVar(&o.scope, "scope", "global", "what the plug-in says of its volumes: global or local")
	flag.StringVar(&o.run, "run", "/run/volumed", "folder of this host's mounts and faults, gone when it is off")
	flag.StringVar(&o.sockets, "sockets", "/run/docker/plugins", "folder of the plug-in's socket")
	flag.Parse()
	if err := o.main(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "skep-volumed:", err)
		os.Exit(1)
	}
}

type options struct{ name, store, host, scope, run, sockets string }

func (o options) main(args []string) error {
	if o.store == "" {
		return errors.New("no -store given")
	}
	s := store{o.store}
	switch {
	case len(args) == 0:
		if o.host == "" {
			h, err := os.Hostname()
			if err != nil {
				return err
			}
			o.host = h
		}
		return o.serve(s)
	case args[0] == "force-detach" && len(args) == 2:
		return s.forceDetach(args[1])
	case args[0] == "ls" && len(args) == 1:
		return s.list(os.Stdout)
	}
	return fmt.Errorf("unknown command %q: ls, or force-detach HOST", args)
}

// serve answers until the process is ended. The protocol is the helpers'; what goes wrong on purpose stands before them.
func (o options) serve(s store) error {
	dir := filepath.Join(o.run, o.name)
	for _, d := range []string{filepath.Join(dir, "faults"), filepath.Join(dir, "ids"), filepath.Join(dir, "mnt"), o.sockets} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	inner, err := socket(filepath.Join(dir, "inner.sock"))
	if err != nil {
		return err
	}
	outer, err := socket(filepath.Join(o.sockets, o.name+".sock"))
	if err != nil {
		return err
	}
	h := volume.NewHandler(&driver{store: s, host: o.host, scope: o.scope, ids: filepath.Join(dir, "ids"), mnt: filepath.Join(dir, "mnt")})
	ended := make(chan error, 2)
	go func() { ended <- h.Serve(inner) }()
	go func() { ended <- http.Serve(outer, faulty(filepath.Join(dir, "faults"), inner.Addr().String())) }()
	return <-ended
}

func socket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return nil, err
	}
	return net.Listen("unix", path)
}

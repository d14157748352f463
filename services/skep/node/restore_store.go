package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"skep.dev/libs/backup"
	"skep.dev/libs/kv"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
	"skep.dev/services/bus"
)

// fill founds the store of the restored cluster: a broker of the name it will have, which nobody else can reach, takes what
// the backup holds and ends. Services and nodes find all of it or, after a crash, nothing.
func fill(ctx context.Context, m *membership, rec *Record, store *pki.Store, in *backedUp) error {
	route, err := freePort()
	if err != nil {
		return err
	}
	log := zap.NewNop()
	// The daemon finds a group of this server alone, of an epoch above the one before: its members are of a cluster that is over.
	server := bus.Place{Server: rec.NodeID + "-1", Witness: rec.Witness, Epoch: backup.Epoch(in.header, time.Now()), ClusterID: rec.ClusterID}
	if err := server.Write(m.paths.Bus()); err != nil {
		return err
	}
	b, err := bus.New(bus.Config{
		NodeID: rec.NodeID, Name: server.Server, DataDir: m.paths.Bus(), Listen: "127.0.0.1:0", Advertise: "127.0.0.1:0", RoutePort: route, TLS: store, Witness: rec.Witness, Log: log,
	})
	if err != nil {
		return fmt.Errorf("restore the store: %w", err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Run(running) }()
	select {
	case <-b.Ready():
		err = load(ctx, b, in, log)
	case err = <-ended:
		ended <- nil
		if err == nil {
			err = ctx.Err()
		}
	}
	stop()
	if rerr := <-ended; err == nil {
		err = rerr
	}
	if err != nil {
		return fmt.Errorf("restore the store: %w", err)
	}
	return nil
}

// load reads the backup once more, this time into the store.
func load(ctx context.Context, b *bus.Bus, in *backedUp, log *zap.Logger) error {
	nc, err := b.InProcess(string(bus.RoleManager))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	l, err := backup.NewLoader(ctx, js, backup.First(in.header, time.Now()))
	if err != nil {
		return err
	}
	for _, bucket := range backup.Buckets() {
		if bucket == subject.Value {
			err = loadValues(in, l)
		}
		for _, e := range in.content[bucket] {
			if err == nil {
				err = l.Put(bucket, e)
			}
		}
		if err != nil {
			return err
		}
	}
	return l.Close(log)
}

func loadValues(in *backedUp, l *backup.Loader) error {
	f, err := os.Open(in.path)
	if err != nil {
		return err
	}
	defer f.Close()
	file, err := backup.Open(f)
	if err != nil {
		return err
	}
	r, err := file.Unlock(in.key)
	if err != nil {
		return err
	}
	return r.Each(backup.Visit{Entry: func(b subject.Bucket, e kv.Entry) error {
		if b != subject.Value {
			return nil
		}
		return l.Put(b, e)
	}})
}

// freePort is one that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

package node

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	skepv1 "skep.dev/proto/skep/v1"

	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	"skep.dev/libs/keys"
	"skep.dev/libs/kv"
	"skep.dev/libs/member"
	"skep.dev/libs/pki"
	"skep.dev/libs/subject"
	"skep.dev/libs/unlockkey"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/skep/cli/backupkey"
	"skep.dev/services/skep/cli/plain"
)

// restoreLimit bounds how long filling the store may take, beside what the daemon's start takes.
const restoreLimit = 30 * time.Minute

func restoreCommand() *cobra.Command {
	var m membership
	var phrase string
	cmd := &cobra.Command{
		Use:   "restore [OPTIONS] (FILE|NAME)",
		Short: "Make this machine the first manager of the cluster that a backup is of",
		Long: "Make this machine the first manager of the cluster that a backup is of. It must be no node.\n" +
			"A scheduled backup that lies on this machine can be given by its name (skep backup ls); `skep leave --force` keeps them.\n\n" +
			"The file is read to its end before anything is made. The managers of then are gone from the cluster: other machines join as managers again.\n" +
			"Workers come back by themselves where this machine has a manager's address, else after `skep node managers ADDRESS` on each of them.\n" +
			"Their containers run on, also those that the backup does not know of: `skep backup unknown` lists these, `skep backup settle` ends it.",
		Example: "  skep backup restore cluster.skep\n  skep backup restore --advertise-addr 192.168.56.101 --passphrase-file /root/backup.pass cluster.skep",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := m.check(cmd); err != nil {
				return err
			}
			if err := m.become(); err != nil {
				return err
			}
			release, err := outsider(m.paths)
			if err != nil {
				return err
			}
			defer release()
			if err := m.checkMetrics(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), restoreLimit)
			defer cancel()
			in, err := readBackup(ctx, backup.ShelfIn(m.paths.Data).Find(args[0]), m.hostname, backupkey.Source{File: phrase, In: cmd.InOrStdin(), Err: cmd.ErrOrStderr()})
			if err != nil {
				return plain.Errorf("%s: %w", args[0], err)
			}
			defer clear(in.master)
			for _, text := range in.found {
				plain.Notef(cmd.ErrOrStderr(), "Warning: %s\n", text)
			}
			rec, boot, err := restore(ctx, &m, in)
			if err != nil {
				return err
			}
			if !m.noStart {
				err := launch(ctx, m.paths, m.logLevel)
				if err == nil && boot.UnlockKey != "" {
					err = firstUnlock(ctx, m.paths, rec.NodeID, boot)
				}
				if err != nil {
					return fmt.Errorf("start the node: %w", err)
				}
			}
			plain.Fprintf(cmd.OutOrStdout(), "Cluster %s restored as it was on %s: this node (%s) is its only manager now.\n", rec.ClusterID,
				in.header.MadeAt.AsTime().UTC().Format(time.DateTime+" MST"), rec.NodeID)
			if len(in.gone) > 0 {
				plain.Fprintf(cmd.OutOrStdout(), "Its managers of then are no nodes any more: %s. What is left of them joins again, after `skep leave --force`.\n", strings.Join(in.gone, ", "))
			}
			plain.Fprintf(cmd.OutOrStdout(), "\nWorkers come back by themselves if this is an address they know; else run this on each of them:\n\n    skep node managers %s\n\n"+
				"What they run and the backup does not know of runs on (skep backup unknown), until you end that:\n\n    skep backup settle\n", rec.Advertise)
			if boot.UnlockKey != "" && m.noStart {
				plain.Fprintf(cmd.OutOrStdout(), "\n")
				plain.Fprintf(cmd.OutOrStdout(), unlockkey.Notice, boot.UnlockKey)
			}
			return nil
		},
	}
	m.add(cmd)
	cmd.Flags().Lookup("node-name").Hidden = false // the machine may be called as a node of the backup
	cmd.Flags().StringVar(&phrase, "passphrase-file", "", "file with the passphrase, or the unlock key, which nobody else may read (default: it is asked for)")
	return cmd
}

// backedUp is a backup that was read to its end.
type backedUp struct {
	header  *skepv1.BackupHeader
	key     backup.Key
	path    string
	master  []byte
	content backup.Content // without the values of secrets
	cluster *skepv1.Cluster
	found   []string // what does not fit together in it
	gone    []string // the managers of then
}

// readBackup reads a backup through, for a machine of a host name, and changes nothing.
func readBackup(ctx context.Context, path, hostname string, from backupkey.Source) (*backedUp, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.NotFound("%v", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fault.Invalid("it is no plain file: a backup is read twice, so put it into one")
	}
	file, err := backup.Open(f)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	in := &backedUp{header: file.Header, path: path, content: backup.Content{}}
	if in.key, err = from.Open(ctx, file.Header); err != nil {
		return nil, err
	}
	r, err := file.Unlock(in.key)
	if err != nil {
		return nil, fault.Denied("%v", err)
	}
	values := map[string]bool{}
	err = r.Each(backup.Visit{
		Master: func(key []byte) error { in.master = append([]byte(nil), key...); return nil },
		Entry: func(b subject.Bucket, e kv.Entry) error {
			if b == subject.Value {
				values[e.Key] = true
			} else {
				in.content[b] = append(in.content[b], e)
			}
			return ctx.Err()
		},
	})
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	secrets, err := vault.AuditBackup(in.master, in.content, values)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	in.found = append(backup.Audit(in.content), secrets...)
	for _, e := range in.content[subject.Spec] {
		if e.Key == keys.Cluster.Key() {
			in.cluster = &skepv1.Cluster{}
			err = proto.Unmarshal(e.Value, in.cluster)
		}
	}
	if err != nil || in.cluster.GetMeta().GetId() == "" {
		return nil, fault.Invalid("there is no cluster in the backup")
	}
	if in.gone, err = backup.Renew(in.content); err != nil {
		return nil, fault.Invalid("%v", err)
	}
	if id := backup.Called(in.content, hostname); id != "" {
		return nil, fault.Conflict("a node in it is called %s, as this machine is: give this one another name with --node-name (if it was that node, remove what is left of it afterwards: skep node rm %s)", hostname, id)
	}
	return in, nil
}

// restore makes the node and fills its store. The record is written last, as by init: an attempt that died half-way is
// simply made again.
func restore(ctx context.Context, m *membership, in *backedUp) (rec *Record, boot *vault.Bootstrapped, err error) {
	place, err := newManager(m)
	if err != nil {
		return nil, nil, err
	}
	boot, err = vault.Restore(vault.RestoreParams{
		Dir: m.paths.Vault(), Hosts: []string{member.HostOf(place.advertise)}, Expiry: in.cluster.Spec.GetNodeCertExpiry().AsDuration(), Master: in.master, Content: in.content,
	})
	if err != nil {
		return nil, nil, err
	}
	store, err := pki.Create(m.paths.Certs(), boot.Cert, boot.Key, boot.CA)
	if err != nil {
		return nil, nil, err
	}
	// What state makes of it when the node starts is the cluster it finds, and this node as a new one.
	spec, err := protojson.Marshal(in.cluster.Spec)
	if err != nil {
		return nil, nil, err
	}
	rec = place.record(m, boot, &Initial{Cluster: spec, CADigest: in.cluster.CaDigest, Availability: strings.ToUpper(m.availability)})
	rec.ClusterID = in.cluster.Meta.Id
	if err := fill(ctx, m, rec, store, in); err != nil {
		return nil, nil, err
	}
	return rec, boot, rec.Save(m.paths)
}

// place is where a machine's first manager listens, and how others reach it.
type place struct {
	advertise, listen string
	found             bool // nobody gave the advertised address
	route             int
}

// newManager looks whether this machine can be the first manager of a cluster, and clears what an attempt that died
// half-way left; without a record there is no cluster in it.
func newManager(m *membership) (place, error) {
	advertise, listen, found, err := managerAddrs(m)
	if err != nil {
		return place{}, err
	}
	port, err := freePorts(listen)
	if err != nil {
		return place{}, err
	}
	if err := metricsApart(m.metrics, port); err != nil {
		return place{}, err
	}
	if err := os.MkdirAll(m.paths.Data, 0o700); err != nil {
		return place{}, fmt.Errorf("make the data directory: %w", err)
	}
	for _, dir := range []string{m.paths.Vault(), m.paths.Certs(), m.paths.Bus()} {
		if err := os.RemoveAll(dir); err != nil {
			return place{}, fmt.Errorf("clear %s: %w", dir, err)
		}
	}
	return place{advertise, listen, found, port + 1}, nil
}

// record is what makes the machine the node.
func (p place) record(m *membership, boot *vault.Bootstrapped, first *Initial) *Record {
	return &Record{
		NodeID: boot.NodeID, ClusterID: boot.ClusterID, Role: RoleManager, Hostname: m.hostname, Joined: time.Now().UTC(),
		Advertise: p.advertise, AdvertiseFound: p.found, Listen: p.listen, DataPath: m.dataPath, RoutePort: p.route, Witness: boot.NodeID + "-w1",
		Containerd: m.containerd, MaxTasks: m.maxTasks, MetricsAddr: m.metrics, Init: first,
	}
}

package vault

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"skep.dev/libs/atomicfile"
	"skep.dev/libs/id"
	"skep.dev/libs/keys"
	"skep.dev/libs/pki"
	"skep.dev/libs/unlockkey"
)

// bootFile holds what Bootstrap sealed until the first vault has put it into the bucket.
const bootFile = "bootstrap.sealed"

// BootstrapParams describes the first manager.
type BootstrapParams struct {
	// Dir is the vault's directory (<data-dir>/vault).
	Dir string
	// Hosts are the addresses the manager advertises.
	Hosts []string
	// Expiry is the life of its certificate (0 = pki.DefaultExpiry).
	Expiry time.Duration
	// Autolock seals the master key from the beginning: it never stands on the disk in clear.
	Autolock bool
	// OwnCert and OwnKey are a root of one's own (PEM); without them one is made.
	OwnCert, OwnKey []byte
}

// Bootstrapped is a new cluster.
type Bootstrapped struct {
	ClusterID    string
	NodeID       string
	CADigest     string
	Cert         []byte // PEM, of the first manager
	Key          []byte // PEM
	CA           []byte // PEM
	WorkerToken  string
	ManagerToken string
	UnlockKey    string // with Autolock; it is kept nowhere in clear
}

// Bootstrap makes a cluster: CA, master key, tokens, the first manager's certificate. It runs before there is a broker;
// the first vault that runs on Dir carries the sealed CA and tokens into the bucket.
func Bootstrap(p BootstrapParams) (*Bootstrapped, error) {
	if p.Expiry == 0 {
		p.Expiry = pki.DefaultExpiry
	}
	ca, err := p.root()
	if err != nil {
		return nil, err
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	key, csrDER, err := pki.NewKeyAndCSR()
	if err != nil {
		return nil, err
	}
	csr, err := pki.ParseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	b := &Bootstrapped{ClusterID: ca.ClusterID(), NodeID: pki.NodeIDFor(csr), CADigest: pki.Digest(ca.Cert), Key: key, CA: ca.CertPEM()}
	if b.Cert, err = ca.Sign(csrDER, pki.Identity{NodeID: b.NodeID, Role: pki.Manager, Hosts: p.Hosts}, p.Expiry); err != nil {
		return nil, err
	}
	worker, manager := tokenRecord{Secret: pki.NewSecret()}, tokenRecord{Secret: pki.NewSecret()}
	b.WorkerToken = pki.Token{Digest: b.CADigest, Secret: worker.Secret}.String()
	b.ManagerToken = pki.Token{Digest: b.CADigest, Secret: manager.Secret}.String()

	master, err := newMaster()
	if err != nil {
		return nil, err
	}
	defer clear(master)
	s, err := newSealer(master)
	if err != nil {
		return nil, err
	}
	sealed := map[string][]byte{}
	for k, v := range map[string]any{
		keyCA: caRecord{Cert: string(b.CA), Key: string(caKey), Cluster: b.ClusterID}, tokenKey(pki.Worker): worker, tokenKey(pki.Manager): manager,
	} {
		if sealed[k], err = s.seal(k, v); err != nil {
			return nil, err
		}
	}
	if err := p.keep(b, s, master, sealed); err != nil {
		return nil, err
	}
	text, err := json.Marshal(sealed)
	if err != nil {
		return nil, fmt.Errorf("store the new CA: %w", err)
	}
	if err := atomicfile.Create(filepath.Join(p.Dir, bootFile), text); err != nil {
		return nil, fmt.Errorf("store the new CA: %w", err)
	}
	return b, nil
}

// keep stores the master key, in clear or sealed under an unlock key. It never replaces one: everything sealed under the
// old key would be lost.
func (p BootstrapParams) keep(b *Bootstrapped, s *sealer, master []byte, sealed map[string][]byte) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("make the master key: %w", err)
	}
	d := disk{dir: p.Dir, log: zap.NewNop()}
	for _, name := range []string{masterFile, sealedFile} {
		if _, err := os.Lstat(d.path(name)); err == nil {
			return fmt.Errorf("make the master key: %s exists: this machine holds a cluster's keys already; skep leave --force removes them", d.path(name))
		}
	}
	if !p.Autolock {
		return d.writeClear(master)
	}
	k, err := unlockkey.New()
	if err != nil {
		return err
	}
	info := next(nil, nil, k.ID(), time.Now())
	if sealed[keys.Unlock.Key()], err = newRecord(s, master, info, k); err != nil {
		return err
	}
	b.UnlockKey = k.Text()
	return d.writeSealed(k, info, master)
}

// root is the new cluster's root.
func (p BootstrapParams) root() (*pki.CA, error) {
	if p.OwnCert == nil {
		return pki.NewCA(id.New())
	}
	return pki.ParseOwnCA(p.OwnCert, p.OwnKey, id.New())
}

// bootstrapped reads what Bootstrap left, nil if nothing.
func bootstrapped(dir string) (map[string][]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, bootFile))
	if os.IsNotExist(err) {
		return nil, nil
	}
	var sealed map[string][]byte
	if err == nil {
		err = json.Unmarshal(text, &sealed)
	}
	if err != nil {
		return nil, fmt.Errorf("read the new CA in %s: %w", filepath.Join(dir, bootFile), err)
	}
	return sealed, nil
}

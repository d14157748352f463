// Package seal is how values travel: from a client to the vault, and from the vault to the one node or reader that asked.
// It is the one place that knows the wire's cryptography, all of it NATS' own curve keys (nkeys: X25519, XSalsa20 and
// Poly1305) and the cluster's certificates.
//
// Three promises:
//   - A client seals to a key that the cluster's CA vouches for: no broker can put its own in its place (ToVault).
//   - What is sealed says what it is for: kind, name and version. A copy of it is of no use elsewhere (FromClient).
//   - A delivery is sealed to a key that was made for one request, which the node's certificate vouches for: nobody can ask
//     in a node's place, and an old delivery opens nowhere (Ask, Reader).
package seal

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"

	"skep.dev/libs/pki"
	pb "skep.dev/proto/skep/v1"
)

// What statements of the cluster's keys are about.
const (
	purposeKey = "the vault's key"
	purposeAsk = "a delivery asked for"
)

// CAKey is the name under which the key of a root of one's own is sealed to the vault. It is of no kind of object.
const CAKey = "the cluster's CA key"

// BackupKey is the name under which the key of a backup is sealed to the vault. It is of no kind of object.
const BackupKey = "a backup's key"

// Key is the vault's key pair.
type Key struct{ pair nkeys.KeyPair }

// NewKey makes one.
func NewKey() (*Key, error) {
	pair, err := nkeys.CreateCurveKeys()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	return &Key{pair}, nil
}

// ParseKey reads what Seed wrote.
func ParseKey(seed []byte) (*Key, error) {
	pair, err := nkeys.FromCurveSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("read a curve key: %w", err)
	}
	return &Key{pair}, nil
}

// Seed is the private half. It must be sealed before it is stored.
func (k *Key) Seed() ([]byte, error) { return k.pair.Seed() }

// Public is the public half with the CA's word for it, and, while the root is rotated, the word of the other roots: a client
// that trusts any of them takes it.
func (k *Key) Public(ca *pki.CA, others ...*pki.CA) (*pb.VaultKey, error) {
	pub, err := k.pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read a curve key: %w", err)
	}
	out := &pb.VaultKey{Xkey: pub, ClusterId: ca.ClusterID()}
	if out.Signature, err = ca.SignStatement(purposeKey, keyText(out)); err != nil {
		return nil, err
	}
	for _, o := range others {
		s, err := o.SignStatement(purposeKey, keyText(out))
		if err != nil {
			return nil, err
		}
		out.Signatures = append(out.Signatures, s)
	}
	return out, nil
}

func keyText(k *pb.VaultKey) []byte { return []byte(k.GetClusterId() + "\n" + k.GetXkey()) }

// check refuses a vault's key that the cluster's CA does not vouch for.
func check(ca *x509.Certificate, k *pb.VaultKey) error {
	const most = 4 // a rotation has two roots
	var err error
	for i, s := range append([][]byte{k.GetSignature()}, k.GetSignatures()...) {
		if err = pki.CheckStatement(ca, purposeKey, keyText(k), s); err == nil || i == most {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("check the vault's key: %w: this cluster's CA does not vouch for it", err)
	}
	return nil
}

// ToVault seals a value to the vault, whose key it checks against the cluster's CA.
func ToVault(ca *x509.Certificate, k *pb.VaultKey, v *pb.SealedValue) ([]byte, error) {
	if err := check(ca, k); err != nil {
		return nil, err
	}
	clear, err := proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", v.GetName(), err)
	}
	defer Wipe(clear)
	return sealOnce(clear, k.GetXkey())
}

// sealOnce seals to a curve key with one that is made for this alone, whose public half stands in front.
func sealOnce(clear []byte, to string) ([]byte, error) {
	once, err := nkeys.CreateCurveKeys()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	defer once.Wipe()
	pub, err := once.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read a curve key: %w", err)
	}
	sealed, err := once.Seal(clear, to)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return append([]byte(pub), sealed...), nil
}

// openOnce opens what sealOnce made.
func openOnce(pair nkeys.KeyPair, sealed []byte) ([]byte, error) {
	if len(sealed) <= keySize {
		return nil, ErrOpen
	}
	clear, err := pair.Open(sealed[keySize:], string(sealed[:keySize]))
	if err != nil {
		return nil, ErrOpen
	}
	return clear, nil
}

// keySize is the length of a public curve key in the form of nkeys.
const keySize = 56

// ErrOpen: what was sealed was sealed to another key, or altered. It tells no more to whoever tries.
var ErrOpen = errors.New("it was not sealed to this key, or it was altered")

// FromClient opens what ToVault sealed, and refuses what was sealed for something else than it is used for.
func (k *Key) FromClient(sealed []byte, kind pb.SecretKind, name string, version uint64) ([]byte, error) {
	clear, err := openOnce(k.pair, sealed)
	if err != nil {
		return nil, err
	}
	defer Wipe(clear)
	var v pb.SealedValue
	if proto.Unmarshal(clear, &v) != nil {
		return nil, ErrOpen
	}
	if v.Kind != kind || v.Name != name || v.Version != version {
		Wipe(v.Value)
		return nil, fmt.Errorf("the value was sealed for version %d of %s, not for version %d of %s", v.Version, v.Name, version, name)
	}
	return v.Value, nil
}

// To seals a message from the vault to a reader's curve key.
func (k *Key) To(reader string, m proto.Message) ([]byte, error) {
	clear, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("seal an answer: %w", err)
	}
	defer Wipe(clear)
	sealed, err := k.pair.Seal(clear, reader)
	if err != nil {
		return nil, fmt.Errorf("seal an answer: %w", err)
	}
	return sealed, nil
}

// Reader is a key made for one answer.
type Reader struct {
	pair nkeys.KeyPair
	pub  string
}

// NewReader makes one.
func NewReader() (*Reader, error) {
	pair, err := nkeys.CreateCurveKeys()
	if err != nil {
		return nil, fmt.Errorf("make a curve key: %w", err)
	}
	pub, err := pair.PublicKey()
	return &Reader{pair, pub}, err
}

// Key is the public half, for the request.
func (r *Reader) Key() string { return r.pub }

// Open opens an answer into m: it must have been sealed by the vault, whose key the cluster's CA vouches for.
func (r *Reader) Open(ca *x509.Certificate, k *pb.VaultKey, sealed []byte, m proto.Message) error {
	if err := check(ca, k); err != nil {
		return err
	}
	clear, err := r.pair.Open(sealed, k.GetXkey())
	if err != nil {
		return ErrOpen
	}
	defer Wipe(clear)
	if err := proto.Unmarshal(clear, m); err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	return nil
}

// Close forgets the private half.
func (r *Reader) Close() { r.pair.Wipe() }

// Ask signs what a node asks for with the key of its certificate.
func Ask(src pki.Source, ask *pb.DeliverAsk) (*pb.DeliverRequest, error) {
	text, err := proto.Marshal(ask)
	if err != nil {
		return nil, fmt.Errorf("ask for a delivery: %w", err)
	}
	out := &pb.DeliverRequest{Ask: text}
	out.Signature, out.CertDer, err = pki.SignStatement(src, purposeAsk, text)
	return out, err
}

// Asked is what a node asked for, and who it is: one of the roots certifies it.
func Asked(roots []*x509.Certificate, r *pb.DeliverRequest) (*pb.DeliverAsk, pki.Identity, error) {
	ask := &pb.DeliverAsk{}
	id, err := asked(roots, r, purposeAsk, ask)
	if err == nil && ask.NodeId != id.NodeID {
		err = fmt.Errorf("node %s asks for a delivery to node %s", id.NodeID, ask.NodeId)
	}
	if err != nil {
		return nil, id, err
	}
	return ask, id, nil
}

// asked reads what somebody signed for a purpose, and says who it is.
func asked(roots []*x509.Certificate, r *pb.DeliverRequest, purpose string, ask proto.Message) (pki.Identity, error) {
	cert, err := x509.ParseCertificate(r.GetCertDer())
	if err != nil {
		return pki.Identity{}, fmt.Errorf("read the certificate of who asks: %w", err)
	}
	if err := pki.Verify(cert, roots, x509.ExtKeyUsageClientAuth, time.Time{}); err != nil {
		return pki.Identity{}, fmt.Errorf("check the certificate of who asks: %w", err)
	}
	id, err := pki.FromCertificate(cert)
	if err != nil {
		return id, err
	}
	if err := pki.CheckStatement(cert, purpose, r.GetAsk(), r.GetSignature()); err != nil {
		return id, fmt.Errorf("check what node %s asks for: %w", id.NodeID, err)
	}
	if err := proto.Unmarshal(r.GetAsk(), ask); err != nil {
		return id, fmt.Errorf("read what node %s asks for: %w", id.NodeID, err)
	}
	return id, nil
}

// Digest ties a Delivery to the DeliverAsk it answers.
func Digest(r *pb.DeliverRequest) []byte {
	sum := sha256.Sum256(r.GetAsk())
	return sum[:]
}

// Wipe overwrites a value that is needed no more. Copies that the runtime made are not reached.
func Wipe(b []byte) { clear(b) }

package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// StartPrivate starts, or starts again with another password, a registry that serves the lab's images over TLS to one user alone.
// Every host is given the CA that vouches for it.
func (l *Lab) StartPrivate(ctx context.Context, user, password string) error {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return fmt.Errorf("start the private registry: %w", err)
	}
	cert, key, err := selfSigned(registryIP)
	if err != nil {
		return fmt.Errorf("start the private registry: %w", err)
	}
	for _, h := range l.Hosts {
		if r, err := l.RunInput(ctx, h.Name, string(cert), "sh", "-c", "cat > "+PrivateCA); err != nil || r.Code != 0 {
			return fmt.Errorf("give %s the private registry's CA: %w %s", h.Name, err, r.Stderr)
		}
	}
	script := fmt.Sprintf(`set -e
cd /var/lib/skep
if [ -f private.pid ]; then kill "$(cat private.pid)"; while kill -0 "$(cat private.pid)" 2>/dev/null; do sleep 0.05; done; fi
cat > private.key
cat > private.htpasswd <<'END'
%s:%s
END
cat > private.yml <<'END'
%s  tls: {certificate: %s, key: /var/lib/skep/private.key}
auth: {htpasswd: {realm: lab, path: /var/lib/skep/private.htpasswd}}
END
OTEL_TRACES_EXPORTER=none setsid registry serve private.yml >>private.log 2>&1 </dev/null &
echo $! > private.pid
while ! nc -z -w1 %s 5443; do kill -0 "$(cat private.pid)"; sleep 0.05; done`,
		user, hash, privateConfig, PrivateCA, registryIP)
	r, err := l.RunInput(ctx, "registry", string(key), "/bin/sh", "-c", script)
	if err != nil {
		return fmt.Errorf("start the private registry: %w", err)
	}
	if r.Code != 0 {
		log, _ := l.Run(ctx, "registry", "cat", "/var/lib/skep/private.log")
		return fmt.Errorf("start the private registry: %s%s", r.Stderr, log.Stdout)
	}
	return nil
}

// privateConfig serves what startRegistry has mounted.
const privateConfig = `version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /run/registry}}
http:
  addr: "` + PrivateAddress + `"
`

// selfSigned makes a certificate for an address that vouches for itself.
func selfSigned(ip string) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "the lab's private registry"}, IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return nil, nil, err
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}), nil
}

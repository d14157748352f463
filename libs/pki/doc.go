// Package pki is the cluster's cryptography and nothing else: the certificate authority, the identities it certifies,
// join tokens, TLS configurations and the files they live in. It knows no NATS and keeps no state.
//
// It owns three decisions. An identity is a certificate: CN is the node id (or user-<name>), OU the role, O the cluster,
// and for users the title is what they may do; whatever a certificate request says about itself is ignored except its
// public key. Every connection is TLS 1.3, and a server is trusted because the cluster's CA says it is a manager, never
// because of its address. A joiner knows only the digest of the CA, from its token, and trusts the one chain that carries
// a certificate with that digest.
//
// It refuses certificates of other clusters, of the wrong role and without a key; a wrong clock on a joiner is not
// refused here (its own certificate is not issued yet), the vault answers that in words.
package pki

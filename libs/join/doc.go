// Package join is a machine's side of the cluster's certificates: joining with a token, and renewing the certificate
// unattended. The other side is services/secrets-vault.
//
// It owns no files: Join returns the material and the caller stores it (pki.Create); the renewal loop saves through the
// caller's pki.Store. It refuses to say anything to a server that does not prove to be a manager of the token's cluster.
//
// Failure story. A join that gets no answer is repeated with the same key, and the same key is the same node, so nothing
// is left behind by a lost answer. A renewal that fails is repeated until the certificate ends; a node whose certificate
// has ended must join again. A rotation of the root is followed by asking the vault: when it says so, when the node starts
// and whenever it is connected again; a new root is taken only if one that is trusted vouches for it.
package join

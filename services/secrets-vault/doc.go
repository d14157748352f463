// Package vault is the keeper of the cluster's CA, of the join tokens and of every certificate (and, with the issue on
// secrets, of secrets and configs).
//
// It owns the bucket secret and the directory vault/: the master key. Nothing in the bucket is in clear: every value is
// sealed under the master key and bound to its key's name. Certificates are issued to joiners with a current token, to
// nodes that the state service still knows (renewal) and to users an admin asks for.
//
// It refuses: tokens that are malformed, of another cluster, rotated or wrong; joiners whose clock is off by more than
// pki.ClockTolerance; too many wrong tokens overall; renewals for removed nodes.
// No secret is logged, put into an event or into an error.
//
// Failure story. It is stateless beyond the bucket: any number of instances serve in a queue group, each with an index
// fed by one watcher. A join is admitted by the state service before the certificate is returned; if the answer is lost the
// joiner repeats the request with the same key and gets the same node. Between init and the first run the CA waits in a
// sealed file, which is removed once the bucket has it.
package vault

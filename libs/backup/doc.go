// Package backup is the file that a cluster's backup is, and what a store must be like to be one: what is written into it,
// what is read from it, and whether what it holds fits together (Audit). It knows no wire and no vault; it never sees the
// clear text of a secret but for the master key, which a backup carries.
//
// # The file
//
//	"skep backup 1\n"
//	length of the header        4 bytes, big-endian
//	header                      protojson of BackupHeader, in clear
//	checksum of the three above SHA-256: tells damage from a wrong key
//	length of the lock          2 bytes, big-endian
//	lock                        the file's key, sealed under the passphrase's key or the unlock key, bound to the checksum
//	chunks                      64 KiB each, the last one shorter, with 16 bytes of authentication
//
// A chunk is sealed with ChaCha20-Poly1305 under the file's key, which no other file has; its nonce is its number and
// whether it is the last. So chunks that are altered, missing, doubled or in another order do not open, and neither does a
// file that was cut off, nor one with something behind its end. What the chunks hold, one after the other, is a row of
// BackupRecords, each with its length in front.
//
// Failure story: who reads learns of whatever is wrong with a file from the reader's error, before the end at the latest;
// so a file is read to its end once before anything is made of it.
package backup

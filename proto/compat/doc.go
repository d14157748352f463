// Package compat holds what released versions wrote: one instance of every message, with every field filled in, as bytes and
// as JSON. Its test reads them with the code of today: a manager or agent of this version understands those of the versions
// before it, in requests and in the store.
//
// Beside it lies what proto/ was: `make proto-check` has buf compare it with what proto/ is, so that a change is refused by the
// name of its field before anything is generated from it.
//
// A release adds two files (`go test ./compat -record v1.2.0`) and never changes one. What may change between releases: fields and
// messages are added. What may not: a number or name of a field, its type, a message's name.
package compat

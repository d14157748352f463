// Package translate turns the objects of Docker's API into skep's and back: one file for each object, both ways, and nothing but
// that. It makes no calls, keeps nothing, and reads no clock; ids and names of networks come in as a function.
//
// What Docker's clients send is kept or refused by its name, and never dropped: an error says which field, and what to do. What
// skep has and Docker has not cannot be said by these clients, who send whole specs back: UpdateFromDocker keeps it. That is
// the one rule behind it: what a client was shown and what it sends are both translated, and only what differs between the two is
// changed.
//
// It validates what only Docker's form can get wrong, such as two modes of one service. All other rules are libs/spec's, which hold for
// every client: who calls ServiceFromDocker has its result validated, by state or before.
//
// Types of github.com/moby/moby/api end here. Where the two differ on purpose, docs/docker.md has a table.
package translate

// Package stack plans what makes a cluster follow a stack: from what one revision asks for, what the stack has made so far and
// what the cluster has, to the steps between, in order. It is pure: it asks nobody and changes nothing.
//
// A plan may be carried out in part, by somebody who dies on the way: the next plan, made from what the cluster has then, does
// the rest. What the stack has not made is neither removed nor taken over: a name that another object has is a refusal.
package stack

import skepv1 "skep.dev/proto/skep/v1"

// Labels that Docker puts on what a stack consists of.
const (
	Label      = "com.docker.stack.namespace"
	LabelImage = "com.docker.stack.image"
)

// Kinds of a stack's members, in the order in which they are made.
const (
	Network = "network"
	Secret  = "secret"
	Config  = "config"
	Service = "service"
)

// Kind is the word of a kind of files.
func Kind(k skepv1.SecretKind) string {
	if k == skepv1.SecretKind_SECRET_KIND_CONFIG {
		return Config
	}
	return Secret
}

// Have is what the cluster has.
type Have struct {
	// Service and Network find the object that has a name, whatever its case; nil when there is none.
	Service func(name string) *skepv1.Service
	Network func(name string) *skepv1.Network
	// ServiceName and NetworkName are the names of ids, "" for what is no id of any.
	ServiceName func(id string) string
	NetworkName func(id string) string
}

// Input is what a plan is made from.
type Input struct {
	Want    *skepv1.StackSpec // nil: the stack is to go
	Was     *skepv1.StackSpec // what the revision before asked for, nil = there was none
	Members []*skepv1.StackMember
	Have    Have
	// Prune says whether a member that is not wanted goes; nil: none does.
	Prune func(*skepv1.StackMember) bool
	// Exact takes versions of secrets and configs as Want has them. Otherwise a newer one that somebody gave a service by
	// hand stays.
	Exact bool
}

// Op is a step of a plan.
type Op struct {
	Kind   string
	Name   string
	ID     string // of the object, "" = it is to be made
	Over   uint64 // the version of the object that the plan was made over
	Verb   skepv1.StackChange_Verb
	Fields []string // what changes, for people
	// Service or Network is what is to be stored: networks and dependencies of a service by name.
	Service *skepv1.ServiceSpec
	Network *skepv1.NetworkSpec
	Needs   []string // names of the services that come before it
	Gone    bool     // nothing is left of it but the member's entry
	Refused string   // why it cannot be done
	Note    string   // what is left as it is, although it was asked for otherwise
}

// Does reports whether a step changes the cluster.
func (o *Op) Does() bool {
	return o.Verb != skepv1.StackChange_VERB_KEEP && o.Verb != skepv1.StackChange_VERB_LEAVE
}

// Change is the step as people are told of it.
func (o *Op) Change() *skepv1.StackChange {
	return &skepv1.StackChange{Kind: o.Kind, Name: o.Name, Verb: o.Verb, Fields: o.Fields}
}

// Package spec knows what a desired object may say: it fills in defaults and refuses what can never work, in the
// words of Docker where Docker has words for it. It is pure and shared by the state service, which decides, and the
// CLI, which can say the same before anything is sent.
//
// It owns no state and looks nothing up: whether a name is taken or a secret exists is for the state service.
// Every error is fault.Invalid, names the field and what to write instead; the first one found is returned.
package spec

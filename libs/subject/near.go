package subject

import "strings"

// What any manager's service may answer is asked of the one beside the broker that holds the asker's connection first, on a
// subject that brokers do not carry to each other:
//
//	skep.v1.here.api.service.create     for skep.v1.api.service.create
//	skep.v1.here.svc.state.status.<id>  for skep.v1.svc.state.status.<id>
//
// A queue group of several managers would choose one at random, also one whose power went and whose route has not ended yet:
// what is on its way there is lost without a word. Nobody listens here: then the plain subject is asked.

const near = prefix + "here."

// AllNear is every subject that stays within one broker.
const AllNear = near + ">"

// Near is the form of a subject that only what is connected to the same broker hears, "" for a subject that has none.
func Near(subj string) string {
	if !strings.HasPrefix(subj, prefix+"api.") && !strings.HasPrefix(subj, prefix+"svc.") {
		return ""
	}
	return near + strings.TrimPrefix(subj, prefix)
}

// FromNear is the subject that a near one stands for; others are what they are.
func FromNear(subj string) string {
	rest, ok := strings.CutPrefix(subj, near)
	if !ok {
		return subj
	}
	return prefix + rest
}

// WithNear is a list of subjects with the near forms of those that have one.
func WithNear(subjects []string) []string {
	for _, s := range subjects[:len(subjects):len(subjects)] {
		if n := Near(s); n != "" {
			subjects = append(subjects, n)
		}
	}
	return subjects
}

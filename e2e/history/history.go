// Package history records what clients asked of named objects while hosts failed, and checks that some order of the requests
// explains every answer: that the objects are linearizable, each name by itself.
//
// It knows nothing of how requests are made. An answer that was lost may have been given or not, at any time after.
package history

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verb is what is done to an object.
type Verb int

// A Read is of the object's value.
const (
	Create Verb = iota
	Update
	Remove
	Read
)

func (v Verb) String() string { return [...]string{"create", "update", "remove", "read"}[v] }

// Request is what was asked. Name is the object's, with its kind: "service web".
type Request struct {
	Verb  Verb
	Name  string
	Value string
}

// Outcome is how it ended.
type Outcome int

const (
	Done    Outcome = iota
	Exists          // refused: there is one of that name
	Missing         // refused: there is none of that name
	Unclear         // an error, or no answer: it may have been done, or be done yet
)

func (o Outcome) String() string { return [...]string{"done", "exists", "missing", "unclear"}[o] }

// Answer is the outcome, and of a read the value.
type Answer struct {
	Outcome Outcome
	Value   string
}

// register is the state of a name.
type register struct {
	there bool
	value string
}

// registers is the model: a register for each name.
var registers = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, output any) (bool, any) {
		s, q, a := state.(register), input.(Request), output.(Answer)
		switch {
		case q.Verb == Read:
			return s.there == (a.Outcome == Done) && (!s.there || s.value == a.Value), s
		case a.Outcome == Exists:
			return q.Verb == Create && s.there, s
		case a.Outcome == Missing:
			return q.Verb != Create && !s.there, s
		case q.Verb == Create && !s.there, q.Verb == Update && s.there:
			return true, register{true, q.Value}
		case q.Verb == Remove:
			return true, register{} // of two that remove one object at once, both are told that it is gone
		}
		return a.Outcome == Unclear, s // refused, and the refusal was lost
	},
}

// forever is when what is unclear ends: it may come true as long as anything can.
const forever = 10_000 * time.Hour

// History grows while clients work; its methods may be called at once.
type History struct {
	began time.Time

	mu  sync.Mutex
	ops map[string][]porcupine.Operation // by name
	all map[Outcome]int
}

// New begins a history.
func New() *History {
	return &History{began: time.Now(), ops: map[string][]porcupine.Operation{}, all: map[Outcome]int{}}
}

// Note adds a request that was asked at began and ended now.
func (h *History) Note(client int, began time.Time, q Request, a Answer) {
	end := time.Since(h.began)
	if a.Outcome == Unclear {
		if q.Verb == Read {
			return // it says nothing
		}
		end = forever
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[a.Outcome]++
	h.ops[q.Name] = append(h.ops[q.Name], porcupine.Operation{ClientId: client, Input: q, Call: int64(began.Sub(h.began)), Output: a, Return: int64(end)})
}

// Names are the names that were written.
func (h *History) Names() (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n := range h.ops {
		names = append(names, n)
	}
	return names
}

// String counts the outcomes.
func (h *History) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprintf("%d requests done, %d refused because of what is there, %d because of what is not, %d unclear", h.all[Done], h.all[Exists], h.all[Missing], h.all[Unclear])
}

// Broken are the names whose answers no order of the requests explains, each with its requests, and the names for which
// within the limit no order was found and none excluded.
func (h *History) Broken(limit time.Duration) (broken map[string]string, unsure []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	broken = map[string]string{}
	for name, ops := range h.ops {
		switch porcupine.CheckOperationsTimeout(registers, ops, limit) {
		case porcupine.Illegal:
			broken[name] = describe(ops)
		case porcupine.Unknown:
			unsure = append(unsure, name)
		}
	}
	return broken, unsure
}

func describe(ops []porcupine.Operation) string {
	var text strings.Builder
	for _, o := range ops {
		q, a := o.Input.(Request), o.Output.(Answer)
		end := fmt.Sprintf("%.3f s", time.Duration(o.Return).Seconds())
		if a.Outcome == Unclear {
			end = "?"
		}
		fmt.Fprintf(&text, "%.3f to %s, client %d: %s %s %s: %s %s\n", time.Duration(o.Call).Seconds(), end, o.ClientId, q.Verb, q.Name, q.Value, a.Outcome, a.Value)
	}
	return text.String()
}

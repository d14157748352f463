package history

import (
	"testing"
	"time"
)

// step is a request from one moment to another, in seconds.
type step struct {
	from, to int
	q        Request
	a        Answer
}

func TestBroken(t *testing.T) {
	create := func(v string) Request { return Request{Create, "service a", v} }
	update := func(v string) Request { return Request{Update, "service a", v} }
	remove, read := Request{Remove, "service a", ""}, Request{Read, "service a", ""}
	done, exists, missing, unclear := Answer{Outcome: Done}, Answer{Outcome: Exists}, Answer{Outcome: Missing}, Answer{Outcome: Unclear}
	is := func(v string) Answer { return Answer{Done, v} }
	for name, c := range map[string]struct {
		steps  []step
		broken bool
	}{
		"in order":                          {steps: []step{{0, 1, create("1"), done}, {2, 3, update("2"), done}, {4, 5, read, is("2")}}},
		"an acknowledged write is lost":     {steps: []step{{0, 1, create("1"), done}, {2, 3, update("2"), done}, {4, 5, read, is("1")}}, broken: true},
		"an acknowledged create is lost":    {steps: []step{{0, 1, create("1"), done}, {4, 5, read, missing}}, broken: true},
		"a removed one is back":             {steps: []step{{0, 1, create("1"), done}, {2, 3, remove, done}, {4, 5, read, is("1")}}, broken: true},
		"at once, either wins":              {steps: []step{{0, 1, create("1"), done}, {2, 5, update("2"), done}, {3, 4, update("3"), done}, {6, 7, read, is("2")}}},
		"two creates of one name":           {steps: []step{{0, 3, create("1"), done}, {1, 2, create("2"), done}}, broken: true},
		"unclear and done":                  {steps: []step{{0, 1, create("1"), unclear}, {2, 3, read, is("1")}}},
		"unclear and not done":              {steps: []step{{0, 1, create("1"), unclear}, {2, 3, read, missing}}},
		"unclear and done late":             {steps: []step{{0, 1, create("1"), unclear}, {2, 3, create("2"), done}, {4, 5, remove, done}, {6, 7, read, is("1")}}},
		"done twice":                        {steps: []step{{0, 1, create("1"), done}, {2, 3, update("2"), unclear}, {4, 5, update("3"), done}, {6, 7, read, is("4")}}, broken: true},
		"its own earlier try in its way":    {steps: []step{{0, 1, create("1"), exists}, {2, 3, read, is("1")}}, broken: true},
		"refused for what was just removed": {steps: []step{{0, 1, create("1"), done}, {2, 3, remove, done}, {4, 5, create("2"), exists}}, broken: true},
		"refused for what is there":         {steps: []step{{0, 1, create("1"), done}, {2, 3, update("2"), missing}}, broken: true},
	} {
		h := New()
		for i, s := range c.steps {
			h.began = time.Now().Add(-time.Duration(s.to) * time.Second) // so that now is s.to
			h.Note(i, h.began.Add(time.Duration(s.from)*time.Second), s.q, s.a)
		}
		broken, unsure := h.Broken(time.Minute)
		if len(unsure) > 0 || (len(broken) == 1) != c.broken {
			t.Errorf("%s: broken %v, unsure %v", name, broken, unsure)
		}
	}
}

package backup

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
	pb "skep.dev/proto/skep/v1"
)

// Audit looks whether what refers to one another is there: one sentence for each difference, in order. It is for cuts of a
// store (something that is half there was cut in two) and for backups that are about to be restored.
//
// What a store may have between two steps of one change is no finding: a revision or a value that nothing refers to yet, a
// task whose service is gone.
func Audit(c Content) []string {
	a := &auditor{objects: map[*keys.Family]map[string]bool{}, index: map[string]string{}, revs: map[string]bool{}}
	for _, e := range c[subject.Rev] {
		a.revs[e.Key] = true
	}
	for _, e := range c[subject.Spec] {
		if f, id := keys.Of(subject.Spec, e.Key); f != nil && f.Value != nil {
			if a.objects[f] == nil {
				a.objects[f] = map[string]bool{}
			}
			a.objects[f][id] = true
		} else {
			a.index[e.Key] = string(e.Value)
		}
	}
	if !a.objects[keys.Cluster][""] {
		a.add("there is no cluster in it")
	}
	for _, e := range c[subject.Spec] {
		a.object(e.Key, e.Value)
	}
	for key, value := range a.index {
		a.taken(key, value)
	}
	on := map[string]string{}
	for _, e := range c[subject.Task] {
		if f, where := keys.Of(subject.Task, e.Key); f == keys.NodeTasks || f == keys.Unplaced {
			a.tasks(where, e.Value, on)
		}
	}
	slices.Sort(a.found)
	return a.found
}

type auditor struct {
	objects map[*keys.Family]map[string]bool // by kind: ids
	index   map[string]string                // what belongs to one object at a time
	revs    map[string]bool
	found   []string
}

func (a *auditor) add(format string, v ...any) { a.found = append(a.found, fmt.Sprintf(format, v...)) }

// object looks at what an object needs beside it.
func (a *auditor) object(key string, value []byte) {
	f, id := keys.Of(subject.Spec, key)
	if f == nil || f.Value == nil {
		return
	}
	m, err := f.Decode(value)
	if err != nil {
		a.add("%s cannot be read: %v", key, err)
		return
	}
	name := func(f *keys.Family, name string) {
		if has := a.index[keys.Name(f, name)]; has != id {
			a.add("%s is called %s, and that name is %q's", key, name, has)
		}
	}
	switch o := m.(type) {
	case *pb.Service:
		name(keys.ServiceName, o.GetSpec().GetName())
		if !a.revs[keys.RevisionKey(id, o.Revision)] {
			a.add("%s is of revision %d, which is not there", key, o.Revision)
		}
	case *pb.Network:
		name(keys.NetworkName, o.GetSpec().GetName())
	case *pb.Stack:
		name(keys.StackName, o.Name)
		if o.Revision != 0 && !a.revs[keys.StackRevisionKey(id, o.Revision)] {
			a.add("%s is of revision %d, which is not there", key, o.Revision)
		}
	case *pb.NodeObject:
		if has := a.index[keys.Number(keys.NodeNumber, o.Number)]; o.Number != 0 && has != id {
			a.add("%s has number %d, which is %q's", key, o.Number, has)
		}
	}
}

// owners are whose a key of the index can be.
var owners = map[*keys.Family][]*keys.Family{
	keys.ServiceName: {keys.Service}, keys.NetworkName: {keys.Network}, keys.StackName: {keys.Stack}, keys.NodeNumber: {keys.Node},
	keys.Port: {keys.Service}, keys.VNI: {keys.Network}, keys.Tunnel: {keys.Network}, keys.Subnet: {keys.Network}, keys.VIP: {keys.Service},
}

// taken looks whether a key of the index names something that is there.
func (a *auditor) taken(key, value string) {
	f, _ := keys.Of(subject.Spec, key)
	for _, of := range owners[f] {
		for _, id := range strings.Fields(strings.TrimPrefix(value, "host ")) {
			if !a.objects[of][id] {
				a.add("%s is taken by %s, which is not there", key, of.Key(id))
			}
		}
	}
}

// tasks looks at one record of tasks: each is in one, and of a revision that is there.
func (a *auditor) tasks(where string, value []byte, on map[string]string) {
	var list pb.NodeTasks
	if err := proto.Unmarshal(value, &list); err != nil {
		a.add("the tasks of %s cannot be read: %v", where, err)
		return
	}
	for _, t := range list.Tasks {
		if other, twice := on[t.Id]; twice {
			a.add("task %s is in two records, %s and %s", t.Id, other, where)
		}
		on[t.Id] = where
		if a.objects[keys.Service][t.ServiceId] && !a.revs[keys.RevisionKey(t.ServiceId, t.Revision)] {
			a.add("task %s is of revision %d of service %s, which is not there", t.Id, t.Revision, t.ServiceId)
		}
	}
}

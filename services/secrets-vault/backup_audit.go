package vault

import (
	"fmt"
	"slices"

	"skep.dev/libs/backup"
	"skep.dev/libs/keys"
	"skep.dev/libs/subject"
)

// auditSecrets looks whether the vault's records fit together: the ledger and the objects it knows, the objects and their
// values (by place). places are the values that are named and there.
func auditSecrets(s *sealer, c backup.Content, values map[string]bool) (found, places []string) {
	add := func(format string, a ...any) { found = append(found, fmt.Sprintf(format, a...)) }
	objects := newObjects()
	ca := false
	for _, e := range c[subject.Secret] {
		var err error
		switch f, id := keys.Of(subject.Secret, e.Key); f {
		case keys.Ledger:
			err = objects.takeLedger(s, e)
		case keys.Object:
			err = objects.takeObject(s, id, e)
		case keys.CA:
			ca = true
			_, err = s.openBytes(e.Key, slices.Clone(e.Value))
		case keys.Curve, keys.Token, keys.BackupKey:
			_, err = s.openBytes(e.Key, slices.Clone(e.Value))
		}
		if err != nil {
			add("%v", err)
		}
	}
	if !ca {
		add("the cluster's CA is not there")
	}
	for id, o := range objects.byID {
		if !objects.genuine(o) {
			add("object %s is not the newest that was written of it", id)
		}
		for version, place := range o.Values {
			switch {
			case !values[place]:
				add("the value of version %d of object %s is not there", version, id)
			case !slices.Contains(places, place): // a rollback's version has the value of another
				places = append(places, place)
			}
		}
	}
	for id := range objects.ledger {
		if objects.byID[id] == nil {
			add("object %s is not there, and was not removed", id)
		}
	}
	slices.Sort(found)
	slices.Sort(places)
	return found, places
}

// AuditBackup looks whether what a backup holds of the vault's fits together, with the master key that it holds.
func AuditBackup(master []byte, c backup.Content, values map[string]bool) ([]string, error) {
	if len(master) != masterSize {
		return nil, fmt.Errorf("the master key in it has %d bytes instead of %d", len(master), masterSize)
	}
	s, err := newSealer(master)
	if err != nil {
		return nil, err
	}
	found, _ := auditSecrets(s, c, values)
	return found, nil
}

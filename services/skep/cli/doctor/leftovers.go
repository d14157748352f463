package doctor

import (
	"fmt"
	"strings"

	"skep.dev/libs/fault"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// mostUnused is how many things that nobody uses one line names.
const mostUnused = 10

func upTo(most int, names []string, more int) string {
	if n := len(names) - most; n > 0 {
		names, more = names[:most], more+n
	}
	out := strings.Join(names, ", ")
	if more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return out
}

// vault tells of what the vault keeps for nobody, and of what it does not trust.
func (d *exam) vault() {
	const check = "secrets"
	if fault.Is(d.VaultErr, fault.CodeLocked) {
		return // that line is there already, with what to do
	}
	if d.denied(d.VaultErr, "secrets and certificates") {
		return
	}
	if d.VaultErr != nil {
		d.add(Error, check, "the vault does not answer, so no node joins or renews its certificate, and no task gets a secret: %v", d.VaultErr)
		return
	}
	if d.Vault == nil {
		return
	}
	since := len(d.out)
	for _, o := range d.Vault.Altered {
		d.add(Error, o, "what the store has of it is not what the vault wrote last, so nobody is given it: restore the store as a whole from a backup, or remove it and create it again")
	}
	if e := d.Vault.UsesError; e != "" {
		d.add(Warn, check, "it is not known which of them nobody uses: %s", e)
	}
	unused := map[skepv1.SecretKind][]string{}
	for _, u := range d.Vault.Unused {
		unused[u.Kind] = append(unused[u.Kind], u.Name)
	}
	more := int(d.Vault.UnusedMore) // of whichever kind
	for _, k := range []skepv1.SecretKind{skepv1.SecretKind_SECRET_KIND_SECRET, skepv1.SecretKind_SECRET_KIND_CONFIG, skepv1.SecretKind_SECRET_KIND_REGISTRY} {
		names := unused[k]
		if len(names) == 0 {
			continue
		}
		word := spec.KindWord(k)
		check, what, next := word+"s", count(len(names), word), fmt.Sprintf("`skep %s rm` removes what is not needed", word)
		if k == skepv1.SecretKind_SECRET_KIND_REGISTRY {
			check, what, next = "registries", count(len(names), "login")+" to registries", "the vault removes them by itself; if they stay for hours, look at its log"
		}
		d.add(Warn, check, "no service uses %s: %s; %s", what, upTo(mostUnused, names, 0), next)
	}
	if more > 0 {
		d.add(Warn, check, "%d more secrets and configs are used by no service", more)
	}
	if n := int(d.Vault.LeftOver); n > 0 {
		d.add(Warn, check, "the vault has %s that no secret or config names: it removes them within half an hour; if they stay, look for \"values that\" in its log", count(n, "value"))
	}
	d.found(since, check, "services use every secret and config, and nothing is left over in the vault")
}

// leftovers tells of what objects that are gone have left in the store.
func (d *exam) leftovers() {
	const check = "leftovers"
	if d.denied(d.StateErr, "what is left over in the store") {
		return
	}
	if d.StateErr != nil {
		d.add(Warn, check, "state does not say what is left of objects that are gone: %v", d.StateErr)
		return
	}
	if d.State == nil {
		return
	}
	since := len(d.out)
	for _, text := range d.State.Differences {
		d.add(Warn, check, "%s: if it is still so in ten minutes, look for \"allocations and objects differ\" in the log of the managers' state service", text)
	}
	if n := len(d.State.Orphans); n > 0 {
		d.add(Warn, check, "%s of services and nodes that are gone could not be removed: %s; look for \"for now\" in the log of the managers' state service", count(n, "key"), upTo(mostUnused, d.State.Orphans, 0))
	}
	if n := d.State.More; n > 0 {
		d.add(Warn, check, "and %d more of these", n)
	}
	d.found(since, check, "nothing is left in the store of what is gone")
}

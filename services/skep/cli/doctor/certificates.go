package doctor

import (
	"fmt"
	"strings"
	"time"

	"skep.dev/libs/pki"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

const (
	// renewedBefore is the share of a certificate's life that is left when nodes have renewed it: they begin between a half
	// and a fifth.
	renewedBefore = 5
	// caEndsSoon and caEndsNow are how long before the CA's end that is told, and how long before it is urgent.
	caEndsSoon = 365 * 24 * time.Hour
	caEndsNow  = 30 * 24 * time.Hour
)

// certificates looks at when the nodes' certificates end, and the CA's.
func (d *exam) certificates() {
	since := len(d.out)
	var first time.Time
	known := 0
	for _, n := range byName(d.After.Nodes) {
		from, until := n.GetDescription().GetCertFromUnixMs(), n.GetDescription().GetCertUntilUnixMs()
		if until <= from {
			continue // an older version, which does not say
		}
		known++
		end := time.UnixMilli(until)
		if first.IsZero() || end.Before(first) {
			first = end
		}
		d.certificate(n, end, end.Sub(time.UnixMilli(from))-pki.Backdate)
	}
	d.authority()
	if known == 0 && d.Vault.GetCaUntilUnixMs() == 0 {
		return
	}
	var parts []string
	if known > 0 {
		parts = append(parts, fmt.Sprintf("%s, the first ends in %s", count(known, "node"), d.left(first)))
	}
	if until := d.Vault.GetCaUntilUnixMs(); until != 0 {
		parts = append(parts, fmt.Sprintf("the CA's ends in %s", d.left(time.UnixMilli(until))))
	}
	d.found(since, "certificates", "%s", strings.Join(parts, "; "))
}

func (d *exam) certificate(n *skepv1.Node, end time.Time, life time.Duration) {
	name := render.Hostname(n)
	check := "certificate of " + name
	down := n.GetStatus().GetState() == skepv1.NodeState_NODE_STATE_DOWN
	left := end.Sub(d.Now)
	switch {
	case left <= 0 && down:
		d.add(Error, check, "it ended %s, while the node was down, so the node is let in no more: `skep leave --force` and `skep join` there, or `skep node rm %s`", when(end), d.ref(n.GetMeta().GetId()))
	case left <= 0:
		d.add(Error, check, "it ended %s: the node is let in no more once its connection ends. `skep leave --force` and `skep join` there; and see that its clock is right", when(end))
	case left >= life/renewedBefore:
	case down:
		d.add(Warn, check, "it ends in %s (%s), and nobody renews it while the node is down: start it before, or it has to join again", d.left(end), when(end))
	default:
		d.add(Warn, check, "it ends in %s (%s) and should have been renewed: look for \"certificate not renewed\" in skep's log there", d.left(end), when(end))
	}
}

// authority looks at the CA, with which every certificate ends.
func (d *exam) authority() {
	ms := d.Vault.GetCaUntilUnixMs()
	if ms == 0 {
		return
	}
	const check = "certificate of the CA"
	const next = "all certificates end with it: put a new one in its place, skep ca --rotate"
	end := time.UnixMilli(ms)
	switch left := end.Sub(d.Now); {
	case left <= 0:
		d.add(Error, check, "it ended %s: no node is let in any more; see that this manager's clock is right", when(end))
	case left < caEndsNow:
		d.add(Error, check, "it ends in %s (%s): %s", d.left(end), when(end), next)
	case left < caEndsSoon:
		d.add(Warn, check, "it ends in %s (%s): %s", d.left(end), when(end), next)
	}
}

// left is how long it is until a time, for people.
func (d *exam) left(t time.Time) string { return span(t.Sub(d.Now)) }

func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// span is a duration for people: its two largest units at most, or one where that is enough.
func span(t time.Duration) string {
	const day = 24 * time.Hour
	switch t = t.Abs(); {
	case t >= 2*365*day:
		return count(int(t/(365*day)), "year")
	case t >= 2*day:
		return count(int(t/day), "day")
	case t >= 2*time.Hour:
		return count(int(t/time.Hour), "hour")
	case t >= 2*time.Minute:
		return count(int(t/time.Minute), "minute")
	case t >= 10*time.Second:
		return count(int(t/time.Second), "second")
	}
	return fmt.Sprintf("%.1f seconds", t.Seconds())
}

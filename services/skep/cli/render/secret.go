package render

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	skepv1 "skep.dev/proto/skep/v1"
)

// Secrets is `secret ls` and `config ls`.
func Secrets(list []*skepv1.Secret, kind skepv1.SecretKind, now time.Time) *Table {
	t := &Table{
		Key: "ID",
		Columns: []Column{{"ID", "ID"}, {"Name", "NAME"}, {"Driver", "DRIVER"}, {"Version", "VERSION"}, {"CreatedAt", "CREATED"}, {"UpdatedAt", "UPDATED"},
			{"Labels", "LABELS"}},
		Default: "{{.ID}}\t{{.Name}}\t{{.Version}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
	}
	for _, s := range list {
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(s.GetSpec().GetLabels())) {
			labels = append(labels, k+"="+s.Spec.Labels[k])
		}
		row := Row{"ID": s.GetMeta().GetId(), "Name": s.GetSpec().GetName(), "Driver": "", "Version": "", "CreatedAt": "", "UpdatedAt": "", "Labels": strings.Join(labels, ",")}
		if n := len(s.GetVersions()); n > 0 { // a viewer is told names alone
			row["Version"] = fmt.Sprint(s.Versions[n-1].Number)
			row["CreatedAt"], row["UpdatedAt"] = Ago(s.Meta.CreatedAt.AsTime(), now), Ago(s.Meta.UpdatedAt.AsTime(), now)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// SecretVersions is `secret history`.
func SecretVersions(s *skepv1.Secret, now time.Time) *Table {
	t := &Table{
		Key:     "Version",
		Columns: []Column{{"Version", "VERSION"}, {"CreatedAt", "CREATED"}, {"Author", "BY"}, {"Size", "SIZE"}, {"UsedBy", "USED BY"}, {"Note", "NOTE"}},
	}
	for i := len(s.GetVersions()) - 1; i >= 0; i-- {
		v := s.Versions[i]
		var users []string
		for _, u := range s.Uses {
			if u.Version == v.Number {
				users = append(users, u.ServiceName)
			}
		}
		note := ""
		switch {
		case v.RollbackTo != 0:
			note = fmt.Sprintf("rollback to version %d", v.RollbackTo)
		case i == len(s.Versions)-1:
			note = "current"
		}
		if v.RollbackTo != 0 && i == len(s.Versions)-1 {
			note = "current, " + note
		}
		t.Rows = append(t.Rows, Row{
			"Version": fmt.Sprint(v.Number), "CreatedAt": Ago(v.CreatedAt.AsTime(), now), "Author": v.Author, "Size": fmt.Sprintf("%d B", v.Size),
			"UsedBy": strings.Join(users, ", "), "Note": note,
		})
	}
	return t
}

// RevisionNumbers names revisions: "revision 3", "revisions 2, 3".
func RevisionNumbers(list []uint64) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = fmt.Sprint(n)
	}
	if len(words) == 1 {
		return "revision " + words[0]
	}
	return "revisions " + strings.Join(words, ", ")
}

// DockerSecret is a secret or config in the form of Docker's API; data is a config's value.
func DockerSecret(s *skepv1.Secret, data []byte) any {
	meta := swarm.Meta{Version: swarm.Version{Index: s.GetMeta().GetVersion()}}
	if c := s.GetMeta().GetCreatedAt(); c != nil {
		meta.CreatedAt, meta.UpdatedAt = c.AsTime(), s.Meta.UpdatedAt.AsTime()
	}
	ann := swarm.Annotations{Name: s.GetSpec().GetName(), Labels: labels(s.GetSpec().GetLabels())}
	var template *swarm.Driver
	if d := s.GetSpec().GetTemplateDriver(); d != "" {
		template = &swarm.Driver{Name: d}
	}
	if s.GetKind() == skepv1.SecretKind_SECRET_KIND_CONFIG {
		return swarm.Config{ID: s.GetMeta().GetId(), Meta: meta, Spec: swarm.ConfigSpec{Annotations: ann, Data: data, Templating: template}}
	}
	return swarm.Secret{ID: s.GetMeta().GetId(), Meta: meta, Spec: swarm.SecretSpec{Annotations: ann, Templating: template}}
}

// PrettySecret is `secret inspect --pretty`.
func PrettySecret(w io.Writer, s *skepv1.Secret, data []byte) {
	p := page{w}
	const when = "2006-01-02 15:04:05.999999999 -0700 utc"
	p.line(0, "ID:\t\t\t%s", s.GetMeta().GetId())
	p.line(0, "Name:\t\t\t%s", s.GetSpec().GetName())
	p.labels(0, "Labels", s.GetSpec().GetLabels())
	if d := s.GetSpec().GetTemplateDriver(); d != "" {
		p.line(0, "Template driver:\t%s", d)
	}
	if c := s.GetMeta().GetCreatedAt(); c != nil {
		p.line(0, "Created at:            \t%s", c.AsTime().UTC().Format(when))
		p.line(0, "Updated at:            \t%s", s.Meta.UpdatedAt.AsTime().UTC().Format(when))
	}
	if n := len(s.GetVersions()); n > 0 {
		p.line(0, "Version:               \t%d (of %d kept)", s.Versions[n-1].Number, n)
	}
	if len(s.GetUses()) > 0 {
		p.line(0, "Used by:")
	}
	for _, u := range s.GetUses() {
		switch {
		case u.Version == 0:
			p.line(1, "%s:\tonly %s", u.ServiceName, RevisionNumbers(u.Revisions))
		case u.Pinned:
			p.line(1, "%s:\tversion %d, pinned", u.ServiceName, u.Version)
		default:
			p.line(1, "%s:\tversion %d", u.ServiceName, u.Version)
		}
		for _, h := range u.Holders {
			p.line(2, "%s on %s has version %d", h.TaskName, h.NodeHostname, h.Version)
		}
	}
	if data != nil {
		p.line(0, "Data:")
		_, _ = w.Write(data)
		if !strings.HasSuffix(string(data), "\n") {
			p.line(0, "")
		}
	}
}

package cli

import (
	"context"
	"fmt"

	"skep.dev/libs/compose"
	"skep.dev/libs/fault"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
)

// stackValue is a secret or config of a stack on its way to the vault.
type stackValue struct {
	k    secretKind
	file *skepv1.StackFile // of the spec that will be deployed: told its id and version
	data []byte
	cur  *skepv1.Secret // what the vault has, nil = nothing of that name
	same bool           // and it is the same
}

// stackValues gives the secrets and configs of a stack to the vault.
type stackValues struct {
	a      *app
	stack  string
	sealer *sealer
	list   []*stackValue
	made   []*stackValue
}

// stackValues finds what the vault has of them. One of that name which is not the stack's is refused.
func (a *app) stackValues(ctx context.Context, s *compose.Stack) (*stackValues, error) {
	v := &stackValues{a: a, stack: s.Spec.Name}
	var errs []error
	for _, of := range []struct {
		k      secretKind
		files  []*skepv1.StackFile
		values []compose.Value
	}{{aSecret, s.Spec.Secrets, s.Secrets}, {aConfig, s.Spec.Configs, s.Configs}} {
		data := map[string][]byte{}
		var names []string
		for _, x := range of.values {
			data[x.Name] = x.Data
			names = append(names, x.Name)
		}
		if len(names) == 0 {
			continue
		}
		has, err := a.secrets(ctx, of.k, filter("names", names...))
		if err != nil {
			return nil, err
		}
		there := map[string]*skepv1.Secret{}
		for _, o := range has {
			there[o.GetSpec().GetName()] = o
		}
		for _, f := range of.files {
			x := &stackValue{k: of.k, file: f, data: data[f.Name], cur: there[f.Name]}
			errs = append(errs, x.check(v.stack)...)
			v.list = append(v.list, x)
		}
	}
	if err := joined(errs); err != nil || len(v.list) == 0 {
		return v, err
	}
	var err error
	v.sealer, err = a.sealer(ctx)
	return v, err
}

// check refuses what can be refused without the vault.
func (x *stackValue) check(stack string) []error {
	var errs []error
	if err := spec.CheckSecret(x.k.kind, x.spec()); err != nil {
		errs = append(errs, &Failure{ExitUsage, err})
	}
	if err := spec.CheckSecretSize(x.k.kind, len(x.data)); err != nil {
		errs = append(errs, &Failure{ExitUsage, fmt.Errorf("%s %s: %w", x.k.word, x.file.Name, err)})
	}
	if x.cur == nil {
		return errs
	}
	switch of := x.cur.GetSpec().GetLabels()[stackLabel]; {
	case of != stack:
		whose := "it was made by hand"
		if of != "" {
			whose = "it is of stack " + of
		}
		errs = append(errs, fault.Conflict("%s %s exists already and is not of stack %s (%s): give yours another name, or declare it as external", x.k.word, x.file.Name, stack, whose))
	case x.cur.GetSpec().GetTemplateDriver() != x.file.TemplateDriver:
		errs = append(errs, fault.Invalid("%s %s: whether its value is a template cannot change: give it another name", x.k.word, x.file.Name))
	}
	return errs
}

func (x *stackValue) spec() *skepv1.SecretSpec {
	return &skepv1.SecretSpec{Name: x.file.Name, Labels: x.file.Labels, TemplateDriver: x.file.TemplateDriver}
}

// look has the vault say of every value whether it would be a new version. Nothing changes.
func (v *stackValues) look(ctx context.Context) error {
	for _, x := range v.list {
		if x.cur == nil {
			continue
		}
		r, err := v.update(ctx, x, true)
		if err != nil {
			return err
		}
		x.same = r.Unchanged
		x.file.Id, x.file.Version = x.cur.GetMeta().GetId(), newest(x.cur).GetNumber()
		if !x.same && newest(r.Secret).GetNumber() > x.file.Version {
			x.file.Version = newest(r.Secret).GetNumber()
		}
	}
	return nil
}

// store makes those that are missing and gives the others their new versions, which no service uses yet.
func (v *stackValues) store(ctx context.Context) error {
	for _, x := range v.list {
		var r *skepv1.SecretReply
		var err error
		switch {
		case x.same:
			continue
		case x.cur == nil:
			var sealed []byte
			if sealed, err = v.sealer.seal(x.k, x.file.Name, 1, x.data); err != nil {
				return err
			}
			if r, err = call(ctx, v.a, x.k.create, &skepv1.CreateSecretRequest{Spec: x.spec(), Sealed: sealed}); err == nil {
				v.made = append(v.made, x)
			}
		default:
			r, err = v.update(ctx, x, false)
		}
		if err != nil {
			return err
		}
		v.a.warnings(r.Warnings)
		x.file.Id, x.file.Version = r.Secret.GetMeta().GetId(), newest(r.Secret).GetNumber()
	}
	return nil
}

func (v *stackValues) update(ctx context.Context, x *stackValue, dry bool) (*skepv1.SecretReply, error) {
	sealed, err := v.sealer.seal(x.k, x.file.Name, newest(x.cur).GetNumber()+1, x.data)
	if err != nil {
		return nil, err
	}
	r := &skepv1.UpdateSecretRequest{Ref: x.cur.GetMeta().GetId(), Sealed: sealed, IfChanged: true, Hold: true, DryRun: dry, LabelAdd: map[string]string{}}
	has := x.cur.GetSpec().GetLabels()
	for key, value := range x.file.Labels {
		if was, is := has[key]; !is || was != value {
			r.LabelAdd[key] = value
		}
	}
	for key := range has {
		if _, wanted := x.file.Labels[key]; !wanted {
			r.LabelRm = append(r.LabelRm, key)
		}
	}
	return call(ctx, v.a, x.k.update, r)
}

// undo removes what store made, when the stack that was to use it was refused.
func (v *stackValues) undo(ctx context.Context) {
	for _, x := range v.made {
		if _, err := call(ctx, v.a, x.k.remove, &skepv1.RemoveSecretRequest{Ref: x.file.Id}); err != nil {
			v.a.warnf("%s %s was made for the stack and is left: %v", x.k.word, x.file.Name, err)
		}
	}
}

func (v *stackValues) wipe() {
	for _, x := range v.list {
		seal.Wipe(x.data)
	}
}

package cli

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/render"
	"skep.dev/services/skep/cli/specflag"
)

// secretKind is what the commands about secrets and configs differ in.
type secretKind struct {
	kind    skepv1.SecretKind
	word    string // secret, config
	about   string
	create  api.Endpoint[*skepv1.CreateSecretRequest, *skepv1.SecretReply]
	update  api.Endpoint[*skepv1.UpdateSecretRequest, *skepv1.SecretReply]
	remove  api.Endpoint[*skepv1.RemoveSecretRequest, *skepv1.RemoveSecretReply]
	inspect api.Endpoint[*skepv1.InspectSecretRequest, *skepv1.InspectSecretReply]
	list    api.Endpoint[*skepv1.ListSecretsRequest, *skepv1.ListSecretsReply]
}

var (
	aSecret = secretKind{
		skepv1.SecretKind_SECRET_KIND_SECRET, "secret", "passwords, keys and other values that only the tasks that use them may read",
		api.SecretCreate, api.SecretUpdate, api.SecretRemove, api.SecretInspect, api.SecretList,
	}
	aConfig = secretKind{
		skepv1.SecretKind_SECRET_KIND_CONFIG, "config", "configuration files",
		api.ConfigCreate, api.ConfigUpdate, api.ConfigRemove, api.ConfigInspect, api.ConfigList,
	}
)

func (a *app) secretCommand(k secretKind) *cobra.Command {
	return group(k.word, "Manage "+k.word+"s: "+k.about,
		a.secretCreate(k), a.secretList(k), a.secretInspect(k), a.secretRemove(k), a.secretUpdate(k), a.secretHistory(k), a.secretRollback(k))
}

// valueFlags are the ways to give a value.
type valueFlags struct{ random uint }

func (v *valueFlags) add(cmd *cobra.Command) {
	cmd.Flags().UintVar(&v.random, "random", 0, "Make a value of so many letters and digits that nobody types or sees")
}

// read reads the value. What comes from a file or a pipe is taken byte by byte as it is; what is typed ends before the
// line's end.
func (v *valueFlags) read(ctx context.Context, a *app, k secretKind, file string) ([]byte, error) {
	limit := spec.SecretLimit(k.kind)
	switch {
	case v.random > 0 && file != "":
		return nil, Usagef("--random makes the value: leave out %q", file)
	case v.random > 0:
		return randomValue(v.random, limit)
	case file == "":
		return nil, Usagef("the value is missing: name a file, - for standard input, or give --random 32")
	case file != "-":
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read the %s's value: %w", k.word, err)
		}
		defer f.Close()
		return readValue(k, f, limit)
	}
	if fd, is := terminalOf(a.In); is {
		b, err := a.askHidden(ctx, fd, "Value of the "+k.word+" (it is not shown): ")
		if err != nil {
			return nil, fmt.Errorf("read the %s's value: %w", k.word, err)
		}
		return b, spec.CheckSecretSize(k.kind, len(b))
	}
	b, err := readValue(k, a.In, limit)
	if err == nil && len(b) == 0 || len(b) == 0 && fault.Is(err, fault.CodeInvalid) {
		return nil, &Failure{ExitUsage, errors.New("error reading from STDIN: data is empty")}
	}
	return b, err
}

func readValue(k secretKind, r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)))
	if err != nil {
		return nil, fmt.Errorf("read the %s's value: %w", k.word, err)
	}
	return b, spec.CheckSecretSize(k.kind, len(b))
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

func randomValue(n uint, limit int) ([]byte, error) {
	if n < 8 || n > uint(limit-1) {
		return nil, Usagef("--random %d: at least 8 letters and digits, at most %d", n, limit-1)
	}
	out := make([]byte, n)
	for i := range out {
		x, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			return nil, fmt.Errorf("make a random value: %w", err)
		}
		out[i] = letters[x.Int64()]
	}
	return out, nil
}

// ca is the cluster's authority.
func (a *app) ca(ctx context.Context) (*x509.Certificate, error) {
	if a.CA != nil {
		return a.CA(ctx)
	}
	ca, err := conn.CA(ctx, conn.Options{RunDir: a.runDir, Context: a.contextName(), Store: a.store})
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CA, which vouches for the vault's key: %w", err)
	}
	return ca, nil
}

// sealer seals values to the vault.
type sealer struct {
	ca  *x509.Certificate
	key *skepv1.VaultKey
}

func (a *app) sealer(ctx context.Context) (*sealer, error) {
	ca, err := a.ca(ctx)
	if err != nil {
		return nil, err
	}
	key, err := call(ctx, a, api.VaultKey, &skepv1.Empty{})
	return &sealer{ca, key}, err
}

func (s *sealer) seal(k secretKind, name string, version uint64, value []byte) ([]byte, error) {
	return seal.ToVault(s.ca, s.key, &skepv1.SealedValue{Kind: k.kind, Name: name, Version: version, Value: value})
}

// sealed seals a value to the vault before it leaves the process.
func (a *app) sealed(ctx context.Context, k secretKind, name string, version uint64, value []byte) ([]byte, error) {
	s, err := a.sealer(ctx)
	if err != nil {
		return nil, err
	}
	return s.seal(k, name, version, value)
}

func (a *app) secretCreate(k secretKind) *cobra.Command {
	var v valueFlags
	var labels []string
	var driver, template string
	cmd := &cobra.Command{Use: "create [OPTIONS] " + strings.ToUpper(k.word) + " [file|-]", Short: "Create a " + k.word + " from a file, or standard input", Args: cobra.RangeArgs(1, 2),
		Long: "Create a " + k.word + " from a file, or standard input (-). The value is sealed to the vault before it leaves this process.\n\n" +
			"Its bytes are taken as they are: a newline at the end of a file is part of the value. One that is typed has none.",
		Example: "  printf %s \"$PASSWORD\" | skep " + k.word + " create db_password -\n  skep " + k.word + " create tls_key ./key.pem\n  skep " + k.word + " create --random 32 db_password",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if driver != "" {
				return Usagef("--driver: skep keeps secrets itself and has no secret drivers")
			}
			s := &skepv1.SecretSpec{Name: args[0], TemplateDriver: template, Labels: map[string]string{}}
			for _, l := range labels {
				key, value, _ := strings.Cut(l, "=")
				s.Labels[key] = value
			}
			if err := spec.CheckSecret(k.kind, s); err != nil {
				return &Failure{ExitUsage, err}
			}
			file := ""
			if len(args) > 1 {
				file = args[1]
			}
			value, err := v.read(ctx, a, k, file)
			if err != nil {
				return err
			}
			defer seal.Wipe(value)
			sealed, err := a.sealed(ctx, k, s.Name, 1, value)
			if err != nil {
				return err
			}
			r, err := call(ctx, a, k.create, &skepv1.CreateSecretRequest{Spec: s, Sealed: sealed})
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			a.printf("%s\n", r.Secret.GetMeta().GetId())
			return nil
		}}
	f := cmd.Flags()
	f.StringArrayVarP(&labels, "label", "l", nil, "A label, key=value")
	f.StringVar(&template, "template-driver", "", "Fill the value in on the node for each task: golang")
	if k.kind == skepv1.SecretKind_SECRET_KIND_SECRET {
		f.StringVarP(&driver, "driver", "d", "", "")
		_ = f.MarkHidden("driver") // it exists: one line above
	}
	completeWords(cmd, "template-driver", spec.TemplateGolang)
	v.add(cmd)
	return cmd
}

func (a *app) secretUpdate(k secretKind) *cobra.Command {
	var v valueFlags
	var labelAdd, labelRm []string
	cmd := &cobra.Command{Use: "update [OPTIONS] " + strings.ToUpper(k.word) + " [file|-]", Short: "Give a " + k.word + " a new version, or other labels", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: completeFirst(a.completeSecrets(k)),
		Long: "Give a " + k.word + " a new version, or other labels.\n\nServices that use it are updated with it, each by its own update policy, or, with --" + k.word + "-update-signal, their tasks get the new file " +
			"and the signal while they run. Those that pin a version (source=NAME@3) stay as they are.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			file := ""
			if len(args) > 1 {
				file = args[1]
			}
			labels, err := specflag.Labels(labelAdd)
			if err != nil {
				return err
			}
			r := &skepv1.UpdateSecretRequest{Ref: args[0], LabelRm: labelRm, LabelAdd: labels}
			var cur *skepv1.Secret
			if len(labelRm) > 0 {
				if cur, err = a.secret(ctx, k, args[0]); err != nil {
					return err
				}
				a.warnings(absentLabels(k.word, labelRm, cur.GetSpec().GetLabels()))
			}
			if file != "" || v.random > 0 || len(labelAdd)+len(labelRm) == 0 {
				value, err := v.read(ctx, a, k, file)
				if err != nil {
					return err
				}
				defer seal.Wipe(value)
				if cur == nil {
					if cur, err = a.secret(ctx, k, args[0]); err != nil {
						return err
					}
				}
				r.Ref = cur.GetMeta().GetId()
				if r.Sealed, err = a.sealed(ctx, k, cur.GetSpec().GetName(), newest(cur).GetNumber()+1, value); err != nil {
					return err
				}
			}
			return a.updateSecret(ctx, k, r)
		}}
	f := cmd.Flags()
	f.StringArrayVar(&labelAdd, "label-add", nil, "Add or change a label, key=value")
	f.StringArrayVar(&labelRm, "label-rm", nil, "Remove a label")
	v.add(cmd)
	return cmd
}

// absentLabels warns of labels that are to be removed and are not there.
func absentLabels(word string, rm []string, have map[string]string) (warnings []string) {
	for _, key := range rm {
		if _, ok := have[key]; !ok {
			warnings = append(warnings, fmt.Sprintf("--label-rm %s: the %s has no such label%s; nothing was removed.", key, word, specflag.There(slices.Sorted(maps.Keys(have)))))
		}
	}
	return warnings
}

// newest is the current version of a secret.
func newest(s *skepv1.Secret) *skepv1.SecretVersion {
	if n := len(s.GetVersions()); n > 0 {
		return s.Versions[n-1]
	}
	return nil
}

func (a *app) updateSecret(ctx context.Context, k secretKind, r *skepv1.UpdateSecretRequest) error {
	reply, err := call(ctx, a, k.update, r)
	if err != nil {
		return err
	}
	a.warnings(reply.Warnings)
	a.printf("%s\n", reply.Secret.GetMeta().GetId())
	if len(r.Sealed) > 0 || r.RollbackTo != 0 {
		a.tellf("Version %d of %s %s", newest(reply.Secret).GetNumber(), k.word, reply.Secret.GetSpec().GetName())
		if len(reply.Rolled) > 0 {
			a.tellf("; updating %s", strings.Join(reply.Rolled, ", "))
		}
		a.tellf(".\n")
	}
	return nil
}

func (a *app) secretRollback(k secretKind) *cobra.Command {
	cmd := &cobra.Command{Use: "rollback " + strings.ToUpper(k.word) + " [VERSION]", Short: "Give a " + k.word + " the value of an older version again", Args: cobra.RangeArgs(1, 2), ValidArgsFunction: completeFirst(a.completeSecrets(k)),
		Long: "Give a " + k.word + " the value of an older version again (default: the one before). That makes a new version, which comes to the services that use it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			cur, err := a.secret(cmd.Context(), k, args[0])
			if err != nil {
				return err
			}
			r := &skepv1.UpdateSecretRequest{Ref: cur.GetMeta().GetId()}
			if len(args) > 1 {
				if r.RollbackTo, err = strconv.ParseUint(args[1], 10, 64); err != nil || r.RollbackTo == 0 {
					return Usagef("invalid version %q: `skep %s history %s` lists them", args[1], k.word, args[0])
				}
			} else {
				vs := cur.GetVersions()
				if len(vs) < 2 {
					return fault.Invalid("%s %s has one version only: there is nothing to go back to", k.word, cur.GetSpec().GetName())
				}
				r.RollbackTo = vs[len(vs)-2].Number
			}
			return a.updateSecret(cmd.Context(), k, r)
		}}
	return cmd
}

func (a *app) secretList(k secretKind) *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List " + k.word + "s", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := l.filters.parse()
			if err != nil {
				return err
			}
			list, err := a.secrets(cmd.Context(), k, f...)
			if err != nil {
				return err
			}
			return printList(a, &l, list, render.Secrets(list, k.kind, a.Now()))
		}}
	l.add(cmd, "the ids", "id", "name", "names", "label")
	return cmd
}

func (a *app) secretInspect(k secretKind) *cobra.Command {
	var i inspectFlags
	cmd := &cobra.Command{Use: "inspect [OPTIONS] " + strings.ToUpper(k.word) + " [" + strings.ToUpper(k.word) + "...]", Short: "Show " + k.word + "s in full, and who uses them", Args: minArgs(1), ValidArgsFunction: a.completeSecrets(k),
		RunE: func(cmd *cobra.Command, args []string) error {
			data := map[string][]byte{}
			list, err := gather(a, cmd.Context(), args, func(ref string) (*skepv1.Secret, error) {
				if k.kind != skepv1.SecretKind_SECRET_KIND_CONFIG || i.json {
					return a.secret(cmd.Context(), k, ref)
				}
				s, value, err := a.configValue(cmd.Context(), ref, 0)
				data[s.GetMeta().GetId()] = value
				return s, err
			})
			if a.nc != nil {
				docker := func(s *skepv1.Secret) any { return render.DockerSecret(s, data[s.GetMeta().GetId()]) }
				if perr := inspect(a, &i, list, docker, func(s *skepv1.Secret) { render.PrettySecret(a.Out, s, data[s.GetMeta().GetId()]) }); perr != nil {
					return perr
				}
			}
			return err
		}}
	i.add(cmd, true)
	return cmd
}

func (a *app) secretHistory(k secretKind) *cobra.Command {
	var l listFlags
	cmd := &cobra.Command{Use: "history [OPTIONS] " + strings.ToUpper(k.word), Short: "List the versions of a " + k.word, Args: exactArgs(1), ValidArgsFunction: completeFirst(a.completeSecrets(k)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.secret(cmd.Context(), k, args[0])
			if err != nil {
				return err
			}
			return printList(a, &l, s.GetVersions(), render.SecretVersions(s, a.Now()))
		}}
	l.add(cmd, "the numbers")
	return cmd
}

func (a *app) secretRemove(k secretKind) *cobra.Command {
	var force bool
	cmd := &cobra.Command{Use: "rm " + strings.ToUpper(k.word) + " [" + strings.ToUpper(k.word) + "...]", Aliases: []string{"remove"}, Short: "Remove " + k.word + "s", Args: minArgs(1), ValidArgsFunction: a.completeSecrets(k),
		Long: "Remove " + k.word + "s. One that a service uses is not removed; nor is one that a service could be rolled back to, unless --force says so.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(cmd.Context(), args, func(ref string) error {
				// By its id: should the answer be lost, nothing else that has the name by then is removed.
				s, err := call(cmd.Context(), a, k.inspect, &skepv1.InspectSecretRequest{Ref: ref})
				if err != nil {
					return err
				}
				r, err := call(cmd.Context(), a, k.remove, &skepv1.RemoveSecretRequest{Ref: s.GetSecret().GetMeta().GetId(), Force: force})
				if err != nil {
					return err
				}
				for _, u := range r.Lost {
					a.warnf("service %s cannot be rolled back to %s any more", u.ServiceName, render.RevisionNumbers(u.Revisions))
				}
				for _, h := range r.Left {
					a.warnf("task %s on %s has not been ended yet, and still has it", h.TaskName, h.NodeHostname)
				}
				a.printf("%s\n", ref)
				return nil
			})
		}}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Remove also what services could be rolled back to")
	return cmd
}

// secret is one, with who uses it.
func (a *app) secret(ctx context.Context, k secretKind, ref string) (*skepv1.Secret, error) {
	r, err := call(ctx, a, k.inspect, &skepv1.InspectSecretRequest{Ref: ref})
	return r.GetSecret(), err
}

// configValue is a config with one of its values (0 = the current one), which travels sealed to this process.
func (a *app) configValue(ctx context.Context, ref string, version uint64) (*skepv1.Secret, []byte, error) {
	reader, err := seal.NewReader()
	if err != nil {
		return nil, nil, err
	}
	defer reader.Close()
	r, err := call(ctx, a, api.ConfigInspect, &skepv1.InspectSecretRequest{Ref: ref, Reader: reader.Key(), Version: version})
	if fault.Is(err, fault.CodeDenied) {
		s, err := a.secret(ctx, aConfig, ref) // a viewer sees the rest
		return s, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	ca, err := a.ca(ctx)
	if err != nil {
		return nil, nil, err
	}
	key, err := call(ctx, a, api.VaultKey, &skepv1.Empty{})
	if err != nil {
		return nil, nil, err
	}
	var v skepv1.SealedValue
	if err := reader.Open(ca, key, r.Sealed, &v); err != nil {
		return nil, nil, fmt.Errorf("read config %s: %w", ref, err)
	}
	return r.Secret, v.Value, nil
}

func (a *app) secrets(ctx context.Context, k secretKind, f ...*skepv1.Filter) ([]*skepv1.Secret, error) {
	return pages(func(p *skepv1.Page) ([]*skepv1.Secret, string, error) {
		r, err := call(ctx, a, k.list, &skepv1.ListSecretsRequest{Filters: f, Page: p})
		return r.GetSecrets(), r.GetNext(), err
	})
}

func (a *app) completeSecrets(k secretKind) completer {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.completion(func(ctx context.Context) ([]string, error) {
			list, err := a.secrets(ctx, k)
			var out []string
			for _, s := range list {
				out = append(out, s.GetSpec().GetName())
			}
			return out, err
		}, args)
	}
}

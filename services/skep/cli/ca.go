package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	"skep.dev/libs/spec"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/render"
)

// lookAtCA paces the look at a rotation that is waited for.
const lookAtCA = 300 * time.Millisecond

type caFlags struct {
	rotate, detach, quiet, json, force bool
	cert, key                          string
	expiry                             time.Duration
}

func (a *app) caCommand() *cobra.Command {
	var v caFlags
	cmd := &cobra.Command{Use: "ca [OPTIONS]", Short: "Show or rotate the cluster's root certificate", Args: noArgs,
		Long: "Show the cluster's root certificate (PEM), or replace it.\n\n" +
			"With --rotate the cluster gets a new root, signed by the old one. Every node is given a certificate of it, users exchange\n" +
			"theirs with their next command, and then the old root is dropped. Tasks and their connections go on; join tokens of before\n" +
			"let in for 30 more days. The rotation waits for nodes that are away; --force-finish ends it without them: they leave and join again.",
		Example: "  skep ca > root.pem\n  skep ca --json\n  skep ca --rotate\n  skep ca --rotate --ca-cert root.pem --ca-key root.key",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, f := cmd.Context(), cmd.Flags()
			if !v.rotate {
				for _, n := range []string{"ca-cert", "ca-key", "cert-expiry", "detach", "quiet", "force-finish"} {
					if f.Changed(n) {
						return Usagef("`--%s` flag requires the `--rotate` flag to update the CA", n)
					}
				}
				r, err := call(ctx, a, api.CAInspect, &skepv1.Empty{})
				if err != nil {
					return err
				}
				return a.showCA(r, v.json)
			}
			if f.Changed("cert-expiry") && v.expiry < spec.MinCertExpiry {
				return Usagef("minimum certificate expiry time is: %s", spec.MinCertExpiry)
			}
			req, err := a.rotateRequest(ctx, v)
			if err != nil {
				return err
			}
			if f.Changed("cert-expiry") {
				if err := a.setCertExpiry(ctx, v.expiry); err != nil {
					return err
				}
			}
			r, err := call(ctx, a, api.CARotate, req)
			if err != nil {
				return err
			}
			if v.detach {
				if v.json {
					return a.showCA(r, true)
				}
				a.tellf("The root is being rotated; `skep ca --json` shows how far it is.\n")
				return nil
			}
			if r, err = a.followRotation(ctx, r, v.quiet); err != nil {
				return err
			}
			return a.showCA(r, v.json)
		}}
	f := cmd.Flags()
	f.BoolVar(&v.rotate, "rotate", false, "Replace the root; of a rotation that is under way, show how it goes on")
	f.BoolVarP(&v.detach, "detach", "d", false, "Return at once instead of waiting until the nodes have moved")
	f.BoolVarP(&v.quiet, "quiet", "q", false, "Do not show progress")
	f.StringVar(&v.cert, "ca-cert", "", "File with a root certificate of your own (PEM)")
	f.StringVar(&v.key, "ca-key", "", "File with its ECDSA key (PEM), which nobody else may read")
	f.DurationVar(&v.expiry, "cert-expiry", spec.DefaultCertExpiry, "Life of node certificates from now on")
	f.BoolVar(&v.force, "force-finish", false, "End the rotation now, without nodes that are away and users who have not exchanged their certificate")
	f.BoolVar(&v.json, "json", false, "Print the root and how far a rotation is as one JSON document (a stable form)")
	return cmd
}

func (a *app) setCertExpiry(ctx context.Context, expiry time.Duration) error {
	c, err := a.cluster(ctx)
	if err != nil {
		return err
	}
	s := c.GetSpec()
	if s == nil {
		s = &skepv1.ClusterSpec{}
	}
	s.NodeCertExpiry = durationpb.New(expiry)
	_, err = call(ctx, a, api.ClusterUpdate, &skepv1.UpdateClusterRequest{Version: c.GetMeta().GetVersion(), Spec: s})
	return err
}

// rotateRequest reads a root of one's own, if there is one. Its key leaves this process sealed to the vault.
func (a *app) rotateRequest(ctx context.Context, v caFlags) (*skepv1.RotateCARequest, error) {
	r := &skepv1.RotateCARequest{ForceFinish: v.force}
	if v.cert == "" && v.key == "" {
		return r, nil
	}
	if v.force {
		return nil, Usagef("--force-finish ends a rotation, --ca-cert and --ca-key begin one: give either")
	}
	cert, key, err := pki.ReadOwnCA(v.cert, v.key)
	if err != nil {
		return nil, &Failure{ExitUsage, err}
	}
	defer seal.Wipe(key)
	r.CertPem = cert
	r.SealedKey, err = a.sealed(ctx, secretKind{}, seal.CAKey, 0, key)
	return r, err
}

// followRotation shows how a rotation goes on until all nodes have moved.
func (a *app) followRotation(ctx context.Context, r *skepv1.CAReply, quiet bool) (*skepv1.CAReply, error) {
	said := ""
	for {
		line, moved := rotationLine(r)
		if line != said && !quiet {
			a.tellf("%s\n", line)
		}
		said = line
		if moved {
			return r, nil
		}
		select {
		case <-ctx.Done():
			a.tellf("The rotation goes on without this command; `skep ca --rotate` shows it again.\n")
			return nil, ctx.Err()
		case <-time.After(lookAtCA):
		}
		next, err := call(ctx, a, api.CAInspect, &skepv1.Empty{})
		if err != nil {
			return nil, err
		}
		r = next
	}
}

// rotationLine says in one line how far a rotation is, and whether all nodes have moved.
func rotationLine(r *skepv1.CAReply) (line string, moved bool) {
	p := r.GetProgress()
	count := fmt.Sprintf("%d/%d nodes", p.GetMoved(), p.GetNodes())
	if p == nil {
		count = "looking at the nodes"
	}
	switch r.GetRotation().GetPhase() {
	case skepv1.CAPhase_CA_PHASE_UNSPECIFIED:
		return "root rotated: every node has a certificate of the new root", true
	case skepv1.CAPhase_CA_PHASE_TRUST:
		return "the managers learn to trust the next root: " + count, false
	case skepv1.CAPhase_CA_PHASE_ISSUE:
		line = "nodes get certificates of the next root: " + count
		if w := p.GetWaiting(); len(w) > 0 {
			line += "; waiting for " + waitingFor(p)
		}
		return line, false
	case skepv1.CAPhase_CA_PHASE_USERS:
		if p == nil {
			return "all nodes have certificates of the new root", false
		}
		if p.GetUsersLeft() > 0 {
			return fmt.Sprintf("all nodes have certificates of the new root. %d users' certificates of the old one (%s) are accepted until %s and exchanged when they are used; skep ca --rotate --force-finish ends that now",
				p.UsersLeft, strings.Join(p.Users, ", "), r.Rotation.UsersUntil.AsTime().Local().Format("2006-01-02 15:04")), true
		}
		return "all nodes have certificates of the new root; the old one is about to be dropped", false
	}
	return "the old root is dropped: " + count + " trust the new one alone", false
}

func waitingFor(p *skepv1.CAProgress) string {
	const most = 3
	var names []string
	for _, w := range p.Waiting[:min(len(p.Waiting), most)] {
		name := w.Hostname
		if name == "" {
			name = w.NodeId
		}
		names = append(names, fmt.Sprintf("%s (%s)", name, w.Why))
	}
	if n := int(p.Nodes-p.Moved) - len(names); n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, ", ")
}

// showCA prints the root, or all that is known of it.
func (a *app) showCA(r *skepv1.CAReply, asJSON bool) error {
	if !asJSON {
		for line := range strings.Lines(string(r.GetRoot().GetCertPem())) {
			a.printf("%s\n", strings.TrimSuffix(line, "\n"))
		}
		return nil
	}
	out := caView{Root: viewRoot(r.GetRoot())}
	for i, f := range r.GetFormer() {
		v := viewRoot(f)
		if i < len(r.FormerUntil) {
			until := r.FormerUntil[i].AsTime()
			v.TokensUntil = &until
		}
		out.Former = append(out.Former, v)
	}
	if t := r.GetRotation(); t != nil {
		line, _ := rotationLine(r)
		v := &caRotationView{Phase: spec.Word(t.Phase), Began: t.BeganAt.AsTime(), By: t.By, Text: line}
		if t.Next != nil {
			next := viewRoot(t.Next)
			v.Next = &next
		}
		if p := r.GetProgress(); p != nil {
			v.Nodes, v.Moved, v.Users, v.UserCertificates = p.Nodes, p.Moved, p.Users, p.UsersLeft
			for _, w := range p.Waiting {
				v.Waiting = append(v.Waiting, caWaitingView{w.NodeId, w.Hostname, w.Why})
			}
		}
		if t.UsersUntil != nil {
			until := t.UsersUntil.AsTime()
			v.UsersUntil = &until
		}
		out.Rotation = v
	}
	return render.JSONValue(a.Out, out)
}

type (
	caView struct {
		Root     caRootView      `json:"root"`
		Rotation *caRotationView `json:"rotation,omitempty"`
		Former   []caRootView    `json:"former,omitempty"`
	}
	caRootView struct {
		Digest      string     `json:"digest"`
		Subject     string     `json:"subject"`
		NotBefore   time.Time  `json:"not_before"`
		NotAfter    time.Time  `json:"not_after"`
		Certificate string     `json:"certificate"`
		TokensUntil *time.Time `json:"tokens_until,omitempty"`
	}
	caRotationView struct {
		Phase            string          `json:"phase"`
		Text             string          `json:"text"`
		Began            time.Time       `json:"began_at"`
		By               string          `json:"by,omitempty"`
		Next             *caRootView     `json:"next,omitempty"`
		Nodes            uint64          `json:"nodes"`
		Moved            uint64          `json:"moved"`
		Waiting          []caWaitingView `json:"waiting,omitempty"`
		UserCertificates uint64          `json:"user_certificates"`
		Users            []string        `json:"users,omitempty"`
		UsersUntil       *time.Time      `json:"users_until,omitempty"`
	}
	caWaitingView struct {
		NodeID   string `json:"node_id"`
		Hostname string `json:"hostname"`
		Why      string `json:"why"`
	}
)

func viewRoot(r *skepv1.CARoot) caRootView {
	return caRootView{Digest: r.GetDigest(), Subject: r.GetSubject(), NotBefore: r.GetNotBefore().AsTime(), NotAfter: r.GetNotAfter().AsTime(), Certificate: string(r.GetCertPem())}
}

package cli

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/doctor"
	"skep.dev/services/skep/cli/render"
)

// askFor is how long the managers may take for one of the doctor's questions.
const askFor = 10 * time.Second

func (a *app) doctorCommand() *cobra.Command {
	var format string
	var asJSON bool
	cmd := &cobra.Command{Use: "doctor [OPTIONS]", Short: "Look for what is wrong with the cluster and its networks", Args: noArgs,
		Long: "Look for what is wrong with the cluster and its networks: compares what is stored, what the mesh made of it and what every node's kernel has; " +
			"looks at certificates, clocks, the managers' disks and the store; and names what is left over or used by nobody.\n\n" +
			"It changes nothing. Exit status 0 means nothing worse than a warning, 1 that something is an error.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks, err := a.examine(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = render.JSONValue(a.Out, checks)
			} else {
				err = checkTable(checks).Print(a.Out, format, false)
			}
			if err == nil && doctor.Worst(checks) == doctor.Error {
				return &Failure{Code: ExitError} // the table says it all
			}
			return err
		}}
	cmd.Flags().StringVar(&format, "format", "", `"table", "table TEMPLATE", "json" or a Go template`)
	cmd.Flags().BoolVar(&asJSON, "json", false, "Print the checks as one JSON document (a stable form)")
	return cmd
}

func checkTable(checks []doctor.Check) *render.Table {
	t := &render.Table{Key: "Check", Wide: true, Columns: []render.Column{{Field: "Status", Header: "STATUS"}, {Field: "Check", Header: "CHECK"}, {Field: "Text", Header: "TEXT"}}}
	words := map[doctor.Status]string{doctor.OK: "OK", doctor.Warn: "WARN", doctor.Error: "ERROR"}
	for _, c := range checks {
		t.Rows = append(t.Rows, render.Row{"Status": words[c.Status], "Check": c.Check, "Text": strings.Join(strings.Fields(c.Text), " ")})
	}
	return t
}

// examine takes the picture. That managers do not answer is a finding; that nobody can be asked at all is an error.
func (a *app) examine(ctx context.Context) ([]doctor.Check, error) {
	if _, err := a.conn(ctx); err != nil {
		return nil, err
	}
	ctx = impatient(ctx)
	var p doctor.Picture
	var err error
	if p.Before, err = a.everything(ctx); err != nil {
		return unanswered(ctx, err)
	}
	var others sync.WaitGroup
	var othersErr error
	others.Go(func() { othersErr = a.upkeep(ctx, &p) })
	defer others.Wait()
	ask, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	p.Mesh, p.MeshErr = call(ask, a, api.MeshNetwork, &skepv1.MeshNetworkRequest{})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.Lock = a.lockState(ctx)
	var ready []*skepv1.Node
	for _, n := range p.Before.Nodes {
		if serves(n) {
			ready = append(ready, n)
		}
	}
	if p.Kernels, err = a.meshStates(ctx, ready); err != nil {
		if !fault.Is(err, fault.CodeDenied) {
			return nil, err
		}
		p.KernelsErr = err
	}
	if p.After, err = a.everything(ctx); err != nil {
		return unanswered(ctx, err)
	}
	if others.Wait(); othersErr != nil {
		return nil, othersErr
	}
	return doctor.Examine(p), nil
}

func unanswered(ctx context.Context, err error) ([]doctor.Check, error) {
	if ctx.Err() != nil || !fault.Is(err, fault.CodeUnavailable) {
		return nil, err
	}
	return []doctor.Check{{Status: doctor.Error, Check: "state", Text: "the managers do not answer what is stored: " + err.Error() + "; is a majority of them up?"}}, nil
}

// everything is what the state service has that the doctor compares.
func (a *app) everything(ctx context.Context) (s doctor.Stored, err error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	if s.Nodes, err = a.nodes(ctx); err != nil {
		return s, err
	}
	if s.Services, err = a.services(ctx); err != nil {
		return s, err
	}
	if s.Networks, err = a.networks(ctx); err != nil {
		return s, err
	}
	s.Tasks, err = a.tasks(ctx, filter("desired-state", "running"))
	return s, err
}

package node

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/skep/cli/conn"
	"skep.dev/services/skep/cli/plain"
)

// firstUnlock opens the vault of a cluster that was made with autolock: its master key has been sealed from the beginning,
// so its first start waits for the key as every other does.
func firstUnlock(ctx context.Context, p Paths, node string, boot *vault.Bootstrapped) error {
	ca, err := pki.ParseCertificate(boot.CA)
	if err != nil {
		return err
	}
	nc, err := conn.Dial(ctx, conn.Options{RunDir: p.Run, DataDir: p.Data})
	if err != nil {
		return err
	}
	defer nc.Close()
	door, err := api.Call(ctx, nc, api.VaultDoor.At(node), &skepv1.VaultDoorRequest{})
	if err != nil {
		return fmt.Errorf("unlock the new manager: %w", err)
	}
	req, err := seal.ToDoor(ca, door, node, boot.UnlockKey)
	if err != nil {
		return err
	}
	if _, err := api.Call(ctx, nc, api.VaultUnlock.At(node), req); err != nil {
		return fmt.Errorf("unlock the new manager: %w", err)
	}
	return nil
}

// keep tells the unlock key, which nobody can ask for once the manager is locked.
func keep(cmd *cobra.Command, key string) {
	plain.Fprintf(cmd.OutOrStdout(), "To unlock a swarm manager after it restarts, run the `skep unlock`\ncommand and provide the following key:\n\n    %s\n\n"+
		"Please remember to store this key in a password manager, since without it you\nwill not be able to restart the manager.\n", key)
}

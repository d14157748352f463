package node

import (
	"context"
	"fmt"

	"skep.dev/libs/api"
	"skep.dev/libs/pki"
	"skep.dev/libs/seal"
	skepv1 "skep.dev/proto/skep/v1"
	vault "skep.dev/services/secrets-vault"
	"skep.dev/services/skep/cli/conn"
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

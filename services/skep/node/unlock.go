package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"skep.dev/libs/api"
	"skep.dev/libs/fault"
	"skep.dev/libs/pki"
	"skep.dev/libs/rpc"
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
	return openVault(ctx, p, ca, node, boot.UnlockKey)
}

// unlockWith opens the vault of this manager, which may start only now.
func unlockWith(ctx context.Context, p Paths, node, key string) error {
	store, err := pki.Open(p.Certs())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := openVault(ctx, p, store.CA(), node, key)
		if err == nil || ctx.Err() != nil || !errors.Is(err, rpc.ErrNobody) && !fault.Is(err, fault.CodeUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func openVault(ctx context.Context, p Paths, ca *x509.Certificate, node, key string) error {
	nc, err := conn.Dial(ctx, conn.Options{RunDir: p.Run, DataDir: p.Data})
	if err != nil {
		return err
	}
	defer nc.Close()
	door, err := api.Call(ctx, nc, api.VaultDoor.At(node), &skepv1.VaultDoorRequest{})
	if err != nil {
		return fmt.Errorf("unlock this manager: %w", err)
	}
	req, err := seal.ToDoor(ca, door, node, key)
	if err != nil {
		return err
	}
	if _, err := api.Call(ctx, nc, api.VaultUnlock.At(node), req); err != nil {
		return fmt.Errorf("unlock this manager: %w", err)
	}
	return nil
}

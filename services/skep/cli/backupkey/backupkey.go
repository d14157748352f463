// Package backupkey gets the key of a backup from people: at the terminal, or out of a file that nobody else may read.
package backupkey

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"skep.dev/libs/backup"
	"skep.dev/libs/fault"
	"skep.dev/libs/unlockkey"
	pb "skep.dev/proto/skep/v1"
	"skep.dev/services/skep/cli/hidden"
)

// Source is where a passphrase, or an unlock key, comes from.
type Source struct {
	File string    // "" = the terminal
	In   io.Reader // which may be one
	Err  io.Writer // where questions are put
}

// New asks for the passphrase of a new backup, twice, and makes its key.
func (s Source) New(ctx context.Context) (*pb.BackupPassphrase, backup.Derived, error) {
	phrase, err := s.secret(ctx, "Passphrase of the backup: ")
	defer func() { clear(phrase) }()
	if err != nil {
		return nil, nil, err
	}
	if len(phrase) < backup.MinPassphrase {
		return nil, nil, fault.Usage("the passphrase has %d bytes: give it %d or more, since whoever has the file can try any number of them", len(phrase), backup.MinPassphrase)
	}
	if s.File == "" {
		again, err := s.secret(ctx, "The same once more: ")
		defer clear(again)
		if err != nil {
			return nil, nil, err
		}
		if !bytes.Equal(phrase, again) {
			return nil, nil, fault.Invalid("the two passphrases differ: nothing was made")
		}
	}
	p, err := backup.NewPassphrase()
	if err != nil {
		return nil, nil, err
	}
	key, err := backup.FromPassphrase(p, phrase)
	return p, key, err
}

// Open asks for what opens a backup.
func (s Source) Open(ctx context.Context, h *pb.BackupHeader) (backup.Key, error) {
	if h.UnlockKey != nil {
		text, err := s.secret(ctx, fmt.Sprintf("It opens with %s.\nPlease enter unlock key: ", backup.Opener(h)))
		defer clear(text)
		if err != nil {
			return nil, err
		}
		k, err := unlockkey.Parse(string(text))
		if err != nil {
			return nil, fault.Invalid("%v", err)
		}
		if k.ID() != h.UnlockKey.Id {
			return nil, fault.Denied("the key given is unlock key %s: the backup opens with %s", k.ID(), backup.Opener(h))
		}
		return backup.Unlock{Key: k}, nil
	}
	phrase, err := s.secret(ctx, "Passphrase of the backup: ")
	defer clear(phrase)
	if err != nil {
		return nil, err
	}
	key, err := backup.FromPassphrase(h.Passphrase, phrase)
	if err != nil {
		return nil, fault.Invalid("open the backup: %v", err)
	}
	return backup.Derived(key), nil
}

func (s Source) secret(ctx context.Context, prompt string) ([]byte, error) {
	if s.File != "" {
		return readFile(s.File)
	}
	f, ok := s.In.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, fault.Invalid("there is no terminal to ask for the passphrase at: give it with --passphrase-file")
	}
	return hidden.Ask(ctx, int(f.Fd()), s.Err, prompt)
}

// readFile reads a secret of one line.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Invalid("read the passphrase: %v", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		return nil, fault.Invalid("read the passphrase: others may read %s: chmod 600 %s", path, path)
	}
	const most = 4 << 10
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fault.Invalid("read the passphrase: %v", err)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 || len(b) > most || bytes.ContainsRune(b, '\n') {
		return nil, fault.Invalid("read the passphrase: %s does not hold one line", path)
	}
	return b, nil
}

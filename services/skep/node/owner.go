package node

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"skep.dev/libs/fault"
)

// become makes this process the user whom the manager's services run as, so that all it writes from here on is theirs. It needs
// the capabilities CHOWN, SETUID and SETGID and no other.
//
// The data directory itself stays root's, with the bit that keeps one user from renaming another's files: what the agent and
// the mesh have there is out of reach for the manager's services.
func (m *membership) become() error {
	if m.owner == 0 {
		return nil
	}
	data := m.paths.Data
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	st, err := os.Stat(data)
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 {
		return fault.Conflict("the data directory %s belongs to user %d, not to root: take another one, or chown it to root if it is skep's", data, sys.Uid)
	}
	if err := os.Chown(data, 0, m.owner); err != nil {
		return fmt.Errorf("share the data directory with user %d: %w", m.owner, err)
	}
	if err := os.Chmod(data, 0o770|os.ModeSticky); err != nil {
		return fmt.Errorf("share the data directory with user %d: %w", m.owner, err)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave root's groups: %w", err)
	}
	if err := syscall.Setresgid(m.owner, m.owner, m.owner); err != nil {
		return fmt.Errorf("become group %d: %w", m.owner, err)
	}
	if err := syscall.Setresuid(m.owner, m.owner, m.owner); err != nil {
		return fmt.Errorf("become user %d: %w", m.owner, err)
	}
	// Where skep.sock is to be: /run of a machine is empty after a restart, and root's.
	if err := os.MkdirAll(filepath.Join(data, "run"), 0o700); err != nil {
		return fmt.Errorf("make the folder of the manager's socket: %w", err)
	}
	return nil
}

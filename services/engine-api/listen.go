package engine

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"skep.dev/libs/member"
	"skep.dev/services/engine-api/internal/wire"
)

// listen makes the socket. It is root's, and where the machine has the group that group's too; who of them may do what is for may.
func listen(path, group string, log *zap.Logger) (net.Listener, error) {
	l, err := member.ListenUnix(path) // mode 0600
	if err != nil {
		return nil, err
	}
	if group == "" {
		return l, nil
	}
	g, err := user.LookupGroup(group)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		return l, nil
	}
	if err == nil {
		var gid int
		if gid, err = strconv.Atoi(g.Gid); err == nil {
			if err = os.Chown(path, -1, gid); err == nil {
				err = os.Chmod(path, 0o660)
			}
		}
	}
	if err != nil {
		log.Warn("the socket is root's alone: it could not be given to its group", zap.String("socket", path), zap.String("group", group), zap.Error(err))
	}
	return l, nil
}

// may decides who may come: who may use skep's own socket on this machine, and nobody else. That is root, and the user that this
// process runs as; what they ask goes on with the rights that the skep command would have for them. Members of the group may open
// the socket and are told so: skep's own socket gives them nothing, so this one does not either.
func may(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return wire.Errorf(http.StatusForbidden, "permission denied: this is no connection of this machine")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return fmt.Errorf("look who asks: %w", err)
	}
	var peer *unix.Ucred
	var perr error
	if err := raw.Control(func(fd uintptr) { peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return fmt.Errorf("look who asks: %w", err)
	}
	if perr != nil {
		return fmt.Errorf("look who asks: %w", perr)
	}
	return mayUser(peer.Uid, uint32(os.Geteuid()))
}

func mayUser(uid, self uint32) error {
	if uid == 0 || uid == self {
		return nil
	}
	return wire.Errorf(http.StatusForbidden, "permission denied: skep answers root on this socket, as on its own; run this as root, or use the skep command with a context (skep context import)")
}

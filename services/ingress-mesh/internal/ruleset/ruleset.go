// Package ruleset is what the packages that own an nftables table have in common: the version of a namespace's ruleset, and
// how a rule is known again. It changes nothing.
package ruleset

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Version is that of the ruleset in the namespace of a netfilter socket: it grows by one with every transaction that
// anybody makes there, so that what was compared before need not be compared again while it stands still.
func Version(c *netlink.Conn) (uint32, error) {
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("read the version of the nftables ruleset: %w", err)
	}
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return 0, fmt.Errorf("read the version of the nftables ruleset: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("read the version of the nftables ruleset: the kernel did not say")
}

// Comment is a rule's comment in the kernel: its text and a hash of what it does, so that a rule of another version, or one
// that somebody put in its place, is recognised without understanding it. Expressions that cannot be encoded are a mistake
// of the program's.
func Comment(family nftables.TableFamily, text string, exprs []expr.Any) []byte {
	h := sha256.New()
	for _, e := range exprs {
		b, err := expr.Marshal(byte(family), e)
		if err != nil {
			panic(fmt.Sprintf("nftables rule %q cannot be encoded: %v", text, err))
		}
		h.Write(b)
	}
	return userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s (skep:%s)", text, hex.EncodeToString(h.Sum(nil)[:6])))
}

// IfName is the name of a link as the kernel compares it: of its full length.
func IfName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

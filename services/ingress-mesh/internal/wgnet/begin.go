package wgnet

import (
	"bytes"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// keepalive makes a node speak to a peer now and again, so that each notices a restart of the other.
const keepalive = 25 * time.Second

// begins reports which of two nodes makes the first contact. If both did, each would answer the other's attempt, give
// up its own and drop the other's answer; and WireGuard tries again only after 5 s, as it does when an attempt is lost
// because the other does not know this node yet.
func begins(own, peer wgtypes.Key) bool { return bytes.Compare(own[:], peer[:]) < 0 }

// Until there is contact, the node that begins tries again after each of these times, and the other, to which the
// first one may think it still has contact from before a restart, after those. Two attempts are far enough apart not to
// meet. Afterwards WireGuard goes on by itself.
var (
	firstTries = []time.Duration{300 * time.Millisecond, 600 * time.Millisecond, 1200 * time.Millisecond, 2400 * time.Millisecond}
	otherTries = []time.Duration{600 * time.Millisecond, 900 * time.Millisecond, 1800 * time.Millisecond}
)

// contact sees to first contacts with peers that are new to the device. The caller holds nw.mu, as what it starts will.
func (nw *network) contact(own wgtypes.Key) {
	nw.contacts++
	nw.tryLater(own, nw.contacts, firstTries, func(k wgtypes.Key) bool { return begins(own, k) })
	nw.tryLater(own, nw.contacts, otherTries, func(k wgtypes.Key) bool { return !begins(own, k) })
}

func (nw *network) tryLater(own wgtypes.Key, round int, after []time.Duration, of func(wgtypes.Key) bool) {
	t := nw.tunnel
	time.AfterFunc(after[0], func() {
		nw.mu.Lock()
		defer nw.mu.Unlock()
		if nw.tunnel != t || nw.contacts != round { // another round has begun, or nothing is left to contact through
			return
		}
		silent := nw.silent(of)
		if len(silent) == 0 {
			return
		}
		var c wgtypes.Config
		wanted := map[wgtypes.Key]Peer{}
		for _, k := range silent { // a peer that is made anew is spoken to at once, whenever the last attempt was
			c.Peers, wanted[k] = append(c.Peers, wgtypes.PeerConfig{PublicKey: k, Remove: true}), nw.peers[k]
		}
		for _, p := range planPeers(own, wanted, nil, nil) {
			every := keepalive
			p.PersistentKeepaliveInterval = &every
			c.Peers = append(c.Peers, p)
		}
		_ = t.write(c) // the next Ensure sees what is missing
		if len(after) > 1 {
			nw.tryLater(own, round, after[1:], of)
		}
	})
}

// silent are the wanted peers with which there was no contact yet.
func (nw *network) silent(of func(wgtypes.Key) bool) (out []wgtypes.Key) {
	have, _, err := nw.tunnel.read()
	if err != nil { // the device is gone: the next Ensure makes another
		return nil
	}
	for _, p := range have {
		k, err := wgtypes.ParseKey(p.PublicKey)
		if _, wanted := nw.peers[k]; err == nil && wanted && p.Handshake.IsZero() && of(k) {
			out = append(out, k)
		}
	}
	return out
}

package mesh

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

const resolvConf = "/etc/resolv.conf"

// resolvers remembers the host's own name servers until their file changes.
type resolvers struct {
	mu      sync.Mutex
	changed time.Time
	list    []netip.AddrPort
}

// now are the name servers of the host, where names go that are not the cluster's.
func (r *resolvers) now() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := os.Stat(resolvConf)
	if err != nil {
		return nil
	}
	if st.ModTime().Equal(r.changed) {
		return r.list
	}
	b, err := os.ReadFile(resolvConf)
	if err != nil {
		return r.list
	}
	r.changed, r.list = st.ModTime(), parseResolvers(string(b))
	return r.list
}

func parseResolvers(text string) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}

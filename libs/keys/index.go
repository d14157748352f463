package keys

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strconv"
	"strings"

	"skep.dev/libs/subject"
)

var enc = base32.HexEncoding.WithPadding(base32.NoPadding)

// Name is the key that makes a name unique among objects of a kind (ServiceName, NetworkName, StackName). Case does not count.
func Name(kind *Family, name string) string {
	return kind.Key(strings.ToLower(enc.EncodeToString([]byte(strings.ToLower(name)))))
}

// Number is a key of a family whose keys end with a number.
func Number[N uint16 | uint32 | uint64](f *Family, n N) string {
	return f.Key(strconv.FormatUint(uint64(n), 10))
}

// PortKey is the key of a published port.
func PortKey(protocol string, port uint32) string {
	return Port.Key(protocol, strconv.FormatUint(uint64(port), 10))
}

// SubnetKey is the key of a subnet.
func SubnetKey(p netip.Prefix) string { return Subnet.Key(strings.Replace(p.String(), "/", "-", 1)) }

// ParseSubnet is the subnet a key stands for.
func ParseSubnet(key string) (netip.Prefix, bool) {
	id, ok := Subnet.ID(key)
	p, err := netip.ParsePrefix(strings.Replace(id, "-", "/", 1))
	return p, ok && err == nil
}

// VIPKey is the key of a virtual address on a network. (A dot would divide the key.)
func VIPKey(network string, a netip.Addr) string {
	return VIP.Key(network, strings.ReplaceAll(a.String(), ".", "-"))
}

// RevisionKey is the key of a service's revision.
func RevisionKey(service string, number uint64) string {
	return Revision.Key(service, strconv.FormatUint(number, 10))
}

// ParseRevision takes such a key apart.
func ParseRevision(key string) (service string, number uint64, ok bool) {
	return parseRevision(Revision, key)
}

// StackRevisionKey is the key of a stack's revision.
func StackRevisionKey(stack string, number uint64) string {
	return StackRevision.Key(stack, strconv.FormatUint(number, 10))
}

// ParseStackRevision takes such a key apart.
func ParseStackRevision(key string) (stack string, number uint64, ok bool) {
	return parseRevision(StackRevision, key)
}

func parseRevision(f *Family, key string) (owner string, number uint64, ok bool) {
	id, ok := f.ID(key)
	owner, text, dot := strings.Cut(id, ".")
	number, err := strconv.ParseUint(text, 10, 64)
	return owner, number, ok && dot && err == nil
}

// ClaimKey is the key of the claim on a volume. Both names may hold what a key may not, and be long.
func ClaimKey(driver, name string) string {
	sum := sha256.Sum256([]byte(driver + "\x00" + name))
	return Claim.Key(strings.ToLower(enc.EncodeToString(sum[:20])))
}

// UnplacedKey is the key of a page of a service's tasks that have no node.
func UnplacedKey(service string, page int) string {
	return Unplaced.Key(service, strconv.Itoa(page))
}

// PageOwner says whose a page of tasks is: a node's, or, of tasks that have none, a service's. Keys of the bucket that are
// no pages have neither.
func PageOwner(key string) (node, service string) {
	switch f, id := Of(subject.Task, key); f {
	case NodeTasks:
		node, _, _ = strings.Cut(id, ".")
	case Unplaced:
		var dot bool
		if service, _, dot = strings.Cut(id, "."); !dot {
			service = ""
		}
	}
	return node, service
}

package node

import (
	"strings"
	"testing"
)

// An address may be of either family, with a port or without, in brackets or not.
func TestAdvertisedAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:2377", "192.0.2.1:99": "192.0.2.1:99", "fd00::1": "[fd00::1]:2377", "[fd00::1]": "[fd00::1]:2377", "[fd00::1]:99": "[fd00::1]:99",
	} {
		if got, err := resolveAdvertise(in, DefaultPort); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
	for in, want := range map[string]string{"::": "non-zero", "[::]": "non-zero", "[fd00::1": "want <ip|interface>[:port]", "[]": "neither an IP address", "[fd00::1]:0": "port"} {
		if got, err := resolveAdvertise(in, DefaultPort); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
}

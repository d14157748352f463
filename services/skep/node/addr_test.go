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

// An advertised address of another machine is warned of, with those that there are; one of this machine is not.
func TestForeignAddresses(t *testing.T) {
	for _, host := range []string{"192.0.2.1", "2001:db8::1"} {
		text := foreign(host)
		if !strings.Contains(text, "address "+host+" is no address of this machine") || !strings.Contains(text, "; this machine has ") {
			t.Errorf("%s: %q", host, text)
		}
		for _, own := range reachable() {
			if !strings.Contains(text, own) || foreign(own) != "" {
				t.Errorf("%s is missing in %q, or warned of: %q", own, text, foreign(own))
			}
		}
	}
	for _, host := range []string{"127.0.0.1", "::1", "a.name"} {
		if text := foreign(host); text != "" {
			t.Errorf("%s: %q", host, text)
		}
	}
}

package node

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"skep.dev/libs/fault"
)

// A value of init's that no machine would take is how the command was written: nothing is made for it.
func TestInitRefusesValuesAsUsage(t *testing.T) {
	for line, want := range map[string]string{
		"--advertise-addr nosuch0": "neither an IP address nor an interface", "--advertise-addr 10.0.0.1:99999": "not between 1 and 65535", "--advertise-addr 0.0.0.0": "non-zero IP address",
		"--listen-addr nosuch0": "neither an IP address", "--data-path-addr nosuch0": "neither an IP address", "--availability away": "only active, pause and drain", "--metrics-addr 9323": "HOST:PORT",
		"--default-addr-pool foo": "foo", "--default-addr-pool-mask-length 40": "40", "--data-path-port 80": "80", "--cert-expiry 1m": "1h", "--dispatcher-heartbeat 1ms": "too short",
		"--node-subnet-pool foo": "foo", "--ca-cert /nonexistent": "ca-",
	} {
		data := t.TempDir()
		cmd := &cobra.Command{Use: "skep", SilenceErrors: true, SilenceUsage: true}
		cmd.PersistentFlags().String("run-dir", t.TempDir(), "")
		cmd.AddCommand(initCommand())
		cmd.SetArgs(append([]string{"init", "--no-start", "--data-dir", data}, strings.Fields(line)...))
		err := cmd.ExecuteContext(t.Context())
		if !fault.Is(err, fault.CodeUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("init %s: %v (%s)", line, err, fault.Of(err))
		}
	}
}

package lab

import (
	"os"
	"testing"

	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) {
	if os.Getenv(clockChild) != "" {
		clockMain()
	}
	leaktest.Main(m)
}

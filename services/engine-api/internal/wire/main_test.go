package wire

import (
	"testing"

	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

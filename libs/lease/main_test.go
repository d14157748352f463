package lease

import (
	"testing"

	"skep.dev/libs/kvtest"
)

func TestMain(m *testing.M) { kvtest.Main(m) }

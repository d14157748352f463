package cli

import (
	"testing"
	"time"

	"skep.dev/libs/leaktest"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // Docker's words were written down in it; before anything reads the time
	leaktest.Main(m)
}

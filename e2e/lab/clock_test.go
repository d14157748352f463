package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// clockChild makes the test's program one that answers every line with its time, while another of its threads asks for it.
const clockChild = "SKEP_LAB_CLOCK_CHILD"

func clockMain() {
	go func() {
		for {
			_ = time.Now()
		}
	}()
	began := time.Now()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(time.Now().UnixNano(), int64(time.Since(began)))
	}
	os.Exit(0)
}

func TestClock(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), clockChild+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	// ask returns how far the child's clock is ahead of ours, in seconds, and checks that its stopwatch is not.
	ask := func() int64 {
		t.Helper()
		before := time.Now()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		var wall, passed int64
		if _, err := fmt.Fscan(out, &wall, &passed); err != nil {
			t.Fatalf("the child gave no answer: %v", err)
		}
		if d := time.Duration(passed); d < 0 || d > time.Since(began) {
			t.Errorf("its stopwatch says %v", d)
		}
		return int64(time.Duration(wall-before.UnixNano()).Round(time.Minute) / time.Second)
	}
	if ahead := ask(); ahead != 0 {
		t.Fatalf("%d s ahead at first", ahead)
	}
	const year = 365 * 24 * time.Hour
	for _, offset := range []time.Duration{year, -year, time.Hour, 0, year, 0} {
		if err := setClock(t.Context(), cmd.Process.Pid, offset); err != nil {
			t.Fatal(err)
		}
		if ahead := ask(); ahead != int64(offset/time.Second) {
			t.Errorf("%d s ahead, want %v", ahead, offset)
		}
	}
}

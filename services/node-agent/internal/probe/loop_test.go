package probe

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// script is a task whose probes answer by its age, and what was told of it.
type script struct {
	began    time.Time
	answer   func(age time.Duration) Verdict
	probes   []time.Duration
	said     []string
	takes    time.Duration // of each probe
	at, most int
}

func (s *script) once(ctx context.Context) result {
	if s.at++; s.at > s.most {
		s.most = s.at
	}
	age := time.Since(s.began)
	s.probes = append(s.probes, age)
	time.Sleep(s.takes)
	s.at--
	return result{s.answer(age), fmt.Sprint("at ", age.Round(time.Second))}
}

// play lets a watch run for a while in fake time.
func (s *script) play(t *testing.T, c *Check, was Verdict, age, length time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s.began = time.Now()
		w := Watch{Check: c, Verdict: was, Started: s.began.Add(-age), Report: func(v Verdict, out string) {
			s.said = append(s.said, fmt.Sprintf("%v %s", []string{"unknown", "pass", "fail"}[v], out))
		}}
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		w.loop(ctx, s.once)
	})
}

func (s *script) told(t *testing.T, want ...string) {
	t.Helper()
	if got := strings.Join(s.said, "; "); got != strings.Join(want, "; ") {
		t.Errorf("told %q, want %q; probes at %v", got, want, s.probes)
	}
}

func always(v Verdict) func(time.Duration) Verdict { return func(time.Duration) Verdict { return v } }

func dur(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func TestDefaultsAreDockers(t *testing.T) {
	c := HealthCheck(&skepv1.HealthConfig{Test: []string{"CMD-SHELL", "x"}}, nil)
	if c.Interval != 30*time.Second || c.Timeout != 30*time.Second || c.StartPeriod != 0 || c.StartInterval != 5*time.Second || c.Retries != 3 {
		t.Errorf("%+v", c)
	}
	if got := strings.Join(c.Command, " "); got != "/bin/sh -c x" {
		t.Errorf("command %q", got)
	}
}

func TestUnsetIsTheImages(t *testing.T) {
	image := &skepv1.HealthConfig{Test: []string{"CMD", "a", "b"}, Interval: dur(time.Second), Retries: 7, StartPeriod: dur(0)}
	for _, x := range []struct {
		name        string
		spec, image *skepv1.HealthConfig
		want        string
	}{
		{"the image's", nil, image, "[a b] 1s 7"},
		{"another interval", &skepv1.HealthConfig{Interval: dur(2 * time.Second)}, image, "[a b] 2s 7"},
		{"another command", &skepv1.HealthConfig{Test: []string{"CMD", "c"}}, image, "[c] 1s 7"},
		{"another way", &skepv1.HealthConfig{TcpPort: 80, Retries: 1}, image, "[] 1s 1"},
		{"switched off", &skepv1.HealthConfig{Test: []string{"NONE"}}, image, "none"},
		{"the image has none", nil, nil, "none"},
		{"the image switches its base's off", &skepv1.HealthConfig{Interval: dur(time.Second)}, &skepv1.HealthConfig{Test: []string{"NONE"}}, "none"},
		{"a word nobody knows", nil, &skepv1.HealthConfig{Test: []string{"curl", "x"}}, "none"},
	} {
		got := "none"
		if c := HealthCheck(x.spec, x.image); c != nil {
			got = fmt.Sprint(c.Command, " ", c.Interval, " ", c.Retries)
		}
		if got != x.want {
			t.Errorf("%s: %s, want %s", x.name, got, x.want)
		}
	}
}

func check(interval time.Duration, retries int32, more ...func(*skepv1.HealthConfig)) *Check {
	h := &skepv1.HealthConfig{Test: []string{"CMD", "x"}, Interval: dur(interval), Retries: retries}
	for _, f := range more {
		f(h)
	}
	return HealthCheck(h, nil)
}

// One that never passes is unhealthy after as many failures as Docker would have counted: at the interval's multiples.
func TestUnhealthyAfterRetries(t *testing.T) {
	s := &script{answer: always(Fail)}
	s.play(t, check(10*time.Second, 3), Unknown, 0, time.Minute)
	if len(s.said) != 2 || !strings.HasPrefix(s.said[0], "unknown") || !strings.HasPrefix(s.said[1], "fail") {
		t.Fatal(s.said)
	}
	var counted time.Duration
	n := 0
	for _, p := range s.probes {
		if p >= 10*time.Second {
			if n++; n == 3 {
				counted = p
			}
		}
	}
	if counted < 30*time.Second || counted > 33*time.Second {
		t.Errorf("the third failure that counts came at %s: %v", counted, s.probes)
	}
}

func TestFailuresInTheStartPeriodDoNotCount(t *testing.T) {
	slow := func(h *skepv1.HealthConfig) { h.StartPeriod, h.StartInterval = dur(time.Minute), dur(2*time.Second) }
	s := &script{answer: func(age time.Duration) Verdict {
		if age < 40*time.Second {
			return Fail
		}
		return Pass
	}}
	s.play(t, check(10*time.Second, 1, slow), Unknown, 0, 100*time.Second)
	if len(s.said) != 2 || !strings.HasPrefix(s.said[1], "pass at 4") {
		t.Errorf("told %v", s.said)
	}
	// Its own start interval is kept to until then: no quicker looks.
	for i := 1; i < 15; i++ {
		if d := s.probes[i] - s.probes[i-1]; d < 2*time.Second || d > 2300*time.Millisecond {
			t.Errorf("pause %s during the start", d)
		}
	}
	// The first success ends the start: a failure within the period counts from then on.
	s = &script{answer: func(age time.Duration) Verdict {
		if age > 3*time.Second && age < 20*time.Second {
			return Pass
		}
		return Fail
	}}
	s.play(t, check(10*time.Second, 1, slow), Unknown, 0, 50*time.Second)
	if len(s.said) != 3 || !strings.HasPrefix(s.said[1], "pass") || !strings.HasPrefix(s.said[2], "fail") {
		t.Errorf("told %v, probes %v", s.said, s.probes)
	}
}

func TestWellFromTheStartIsToldAtOnce(t *testing.T) {
	s := &script{answer: always(Pass)}
	s.play(t, check(30*time.Second, 3), Unknown, 0, 100*time.Second)
	s.told(t, "pass at 0s")
	if s.probes[0] > quickCommand {
		t.Errorf("first probe at %s", s.probes[0])
	}
	if len(s.probes) < 3 || len(s.probes) > 4 {
		t.Errorf("probes at %v", s.probes)
	}
}

func TestOneSuccessHeals(t *testing.T) {
	s := &script{answer: func(age time.Duration) Verdict {
		switch {
		case age < 10*time.Second, age > 30*time.Second:
			return Pass
		}
		return Fail
	}}
	s.play(t, check(time.Second, 3), Unknown, 0, time.Minute)
	if len(s.said) != 3 || !strings.HasPrefix(s.said[1], "fail at 1") || !strings.HasPrefix(s.said[2], "pass at 3") {
		t.Errorf("told %v", s.said)
	}
	// Single failures between successes never add up.
	n := 0
	s = &script{answer: func(time.Duration) Verdict { n++; return Verdict(1 + min(n%3, 1)) }}
	s.play(t, check(time.Second, 3), Pass, time.Hour, time.Minute)
	s.told(t)
}

func TestWhatTheNodeCannotDoCountsForNothing(t *testing.T) {
	s := &script{answer: always(Unknown)}
	s.play(t, check(time.Second, 1), Pass, time.Hour, time.Minute)
	s.told(t)
}

func TestTakenOverKeepsItsVerdict(t *testing.T) {
	for v, answer := range map[Verdict]Verdict{Pass: Pass, Fail: Fail} {
		s := &script{answer: always(answer)}
		s.play(t, check(30*time.Second, 3), v, time.Hour, 3*time.Minute)
		s.told(t)
		if s.probes[0] > resumeWithin+time.Second {
			t.Errorf("first probe of a task taken over at %s", s.probes[0])
		}
	}
	// Many taken over at once are not probed at once.
	first := map[time.Duration]bool{}
	for range 20 {
		first[check(30*time.Second, 3).first(Pass).Round(time.Millisecond)] = true
	}
	if len(first) < 15 {
		t.Errorf("20 first probes at %d different times", len(first))
	}
}

func TestProbesDoNotPileUp(t *testing.T) {
	s := &script{answer: always(Pass), takes: 5 * time.Second}
	s.play(t, check(time.Second, 3), Unknown, 0, time.Minute)
	if s.most != 1 {
		t.Errorf("%d at a time", s.most)
	}
	for i := 1; i < len(s.probes); i++ {
		if d := s.probes[i] - s.probes[i-1]; d < 5900*time.Millisecond {
			t.Errorf("the next began %s after the one before, which took 5 s", d)
		}
	}
}

func TestReadiness(t *testing.T) {
	c := ReadyCheck(&skepv1.HealthConfig{TcpPort: 80})
	if c.Interval != 5*time.Second || c.Timeout != 5*time.Second || c.Retries != 2 {
		t.Errorf("%+v", c)
	}
	s := &script{answer: func(age time.Duration) Verdict {
		if age < 2*time.Second || age > 60*time.Second && age < 80*time.Second {
			return Fail
		}
		return Pass
	}}
	s.play(t, c, Unknown, 0, 2*time.Minute)
	if len(s.said) != 4 || !strings.HasPrefix(s.said[1], "pass at") || !strings.HasPrefix(s.said[2], "fail at") || !strings.HasPrefix(s.said[3], "pass at 1m2") {
		t.Errorf("told %v", s.said)
	}
	if ReadyCheck(nil) != nil || ReadyCheck(&skepv1.HealthConfig{}) != nil {
		t.Error("a check of nothing")
	}
}

func TestOnlyTheEndOfTheOutputIsKept(t *testing.T) {
	var w tailWriter
	for i := range 100_000 {
		fmt.Fprintf(&w, "line %d\n", i)
	}
	if s := w.String(); len(s) > OutputLimit || !strings.HasSuffix(s, "line 99999") || cap(w.buf) > 8*OutputLimit {
		t.Errorf("%d bytes, %d kept, ends %q", len(s), cap(w.buf), s[len(s)-20:])
	}
	_, _ = w.Write([]byte(strings.Repeat("\xff", 3*OutputLimit)))
	if s := w.String(); !strings.Contains(s, "\uFFFD") || strings.Contains(s, "\xff") {
		t.Error("not UTF-8")
	}
	if s := timedOut(&Check{Timeout: time.Second}, strings.Repeat("x", 2*OutputLimit)); len(s) > OutputLimit || !strings.HasPrefix(s, "Health check exceeded timeout (1s): x") {
		t.Errorf("%d bytes", len(s))
	}
}

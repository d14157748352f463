package translate

import (
	"fmt"

	skepv1 "skep.dev/proto/skep/v1"
)

// warnings are what is understood in another way than its writer may think. State has its own, of what every client may ask for.
func warnings(s *skepv1.ServiceSpec) []string {
	var out []string
	c := s.GetTask().GetContainer()
	for _, l := range []struct {
		word  string
		files []*skepv1.FileReference
	}{{"secret", c.GetSecrets()}, {"config", c.GetConfigs()}} {
		for _, f := range l.files {
			if f.GetMode() == 0 {
				out = append(out, fmt.Sprintf("%s %s has mode 0, which is read as none: its file is readable for all (0444)", l.word, f.GetName()))
			}
		}
	}
	return out
}

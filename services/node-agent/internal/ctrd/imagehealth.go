package ctrd

import (
	"encoding/json"
	"fmt"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/durationpb"

	skepv1 "skep.dev/proto/skep/v1"
)

// parseConfig reads an image's configuration and the HEALTHCHECK in it.
func parseConfig(body []byte) (v1.ImageConfig, *skepv1.HealthConfig, error) {
	var conf v1.Image
	if err := json.Unmarshal(body, &conf); err != nil {
		return v1.ImageConfig{}, nil, err
	}
	check, err := imageHealth(body)
	if err != nil {
		return v1.ImageConfig{}, nil, fmt.Errorf("HEALTHCHECK: %w", err)
	}
	return conf.Config, check, nil
}

// imageHealth reads the HEALTHCHECK of an image's configuration, nil when it has none. It is Docker's own: the OCI
// specification, and so its Go types, leave it out.
func imageHealth(config []byte) (*skepv1.HealthConfig, error) {
	var image struct {
		Config struct {
			Healthcheck *struct {
				Test                                          []string
				Interval, Timeout, StartPeriod, StartInterval time.Duration // nanoseconds
				Retries                                       int32
			}
		} `json:"config"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, err
	}
	h := image.Config.Healthcheck
	if h == nil {
		return nil, nil
	}
	return &skepv1.HealthConfig{
		Test: h.Test, Interval: durationpb.New(h.Interval), Timeout: durationpb.New(h.Timeout),
		StartPeriod: durationpb.New(h.StartPeriod), StartInterval: durationpb.New(h.StartInterval), Retries: h.Retries,
	}, nil
}

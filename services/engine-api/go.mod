module skep.dev/services/engine-api

go 1.26.0

require (
	github.com/moby/moby/api v1.56.1
	google.golang.org/protobuf v1.36.12
	pgregory.net/rapid v1.3.0
	skep.dev/libs v0.0.0-00010101000000-000000000000
	skep.dev/proto v0.0.0
)

require (
	github.com/distribution/reference v0.6.0 // indirect
	github.com/docker/go-units v0.5.0 // indirect
	github.com/moby/docker-image-spec v1.3.1 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	github.com/robfig/cron/v3 v3.0.1 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace (
	skep.dev/libs => ../../libs
	skep.dev/proto => ../../proto
)

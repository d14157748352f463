module skep.dev/services/skep

go 1.26.0

require (
	skep.dev/libs v0.0.0
	skep.dev/proto v0.0.0
	skep.dev/services/bus v0.0.0
	skep.dev/services/health-monitor v0.0.0
	skep.dev/services/ingress-mesh v0.0.0
	skep.dev/services/node-agent v0.0.0
	skep.dev/services/scheduler v0.0.0
	skep.dev/services/secrets-vault v0.0.0
	skep.dev/services/state v0.0.0
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/moby/moby/api v1.56.1
	github.com/nats-io/nats.go v1.55.0
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/spf13/cobra v1.10.2
	github.com/spf13/pflag v1.0.9
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/term v0.47.0
	google.golang.org/protobuf v1.36.12
)

replace (
	skep.dev/libs => ../../libs
	skep.dev/proto => ../../proto
	skep.dev/services/bus => ../bus
	skep.dev/services/health-monitor => ../health-monitor
	skep.dev/services/ingress-mesh => ../ingress-mesh
	skep.dev/services/node-agent => ../node-agent
	skep.dev/services/scheduler => ../scheduler
	skep.dev/services/secrets-vault => ../secrets-vault
	skep.dev/services/state => ../state
)

module skep.dev/services/state

go 1.26

require (
	skep.dev/libs v0.0.0
	skep.dev/proto v0.0.0
)

replace (
	skep.dev/libs => ../../libs
	skep.dev/proto => ../../proto
)

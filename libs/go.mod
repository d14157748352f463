module skep.dev/libs

go 1.26

require skep.dev/proto v0.0.0

replace skep.dev/proto => ../proto

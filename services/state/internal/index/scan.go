package index

import (
	"google.golang.org/protobuf/encoding/protowire"

	skepv1 "skep.dev/proto/skep/v1"
)

// These walk encoded task sets and reports without building messages: counting 100,000 tasks must not make
// 100,000 objects. Field numbers are those of object.proto; scan_test holds them against the real encoder.

type recordView struct {
	id, service []byte
	revision    uint64
	run         uint64
	desired     skepv1.TaskState
	verdict     skepv1.TaskState
	failures    uint64
}

type statusView struct {
	id      []byte
	state   skepv1.TaskState
	health  skepv1.HealthState
	unready bool
	served  bool // it has at some time
}

// begins: as spec.Begins.
func (v *statusView) begins() bool {
	return v.state == skepv1.TaskState_TASK_STATE_RUNNING && !v.served &&
		(v.unready || v.health == skepv1.HealthState_HEALTH_STATE_STARTING || v.health == skepv1.HealthState_HEALTH_STATE_UNHEALTHY)
}

// eachMessage calls f for every occurrence of a length-delimited field.
func eachMessage(raw []byte, field protowire.Number, f func([]byte)) {
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return
		}
		raw = raw[n:]
		if num == field && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return
			}
			f(v)
			raw = raw[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, raw); n < 0 {
			return
		}
		raw = raw[n:]
	}
}

func eachRecord(raw []byte, f func(recordView)) {
	eachMessage(raw, 1, func(b []byte) {
		var v recordView
		eachField(b, func(num protowire.Number, u uint64, s []byte) {
			switch num {
			case 1:
				v.id = s
			case 2:
				v.service = s
			case 4:
				v.revision = u
			case 5:
				v.desired = skepv1.TaskState(u)
			case 7:
				v.verdict = skepv1.TaskState(u)
			case 14:
				v.run = u
			case 16:
				v.failures = u
			}
		})
		f(v)
	})
}

func eachStatus(raw []byte, f func(statusView)) {
	eachMessage(raw, 5, func(b []byte) {
		var v statusView
		eachField(b, func(num protowire.Number, u uint64, s []byte) {
			switch num {
			case 1:
				v.id = s
			case 2:
				v.state = skepv1.TaskState(u)
			case 10:
				v.health = skepv1.HealthState(u)
			case 14:
				v.unready = u != 0
			case 17:
				v.served = u != 0
			}
		})
		f(v)
	})
}

// eachField gives varints and byte strings; other types do not occur in what is looked at here.
func eachField(raw []byte, f func(protowire.Number, uint64, []byte)) {
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return
		}
		raw = raw[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(raw)
			if n < 0 {
				return
			}
			f(num, v, nil)
			raw = raw[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return
			}
			f(num, 0, v)
			raw = raw[n:]
		default:
			if n = protowire.ConsumeFieldValue(num, typ, raw); n < 0 {
				return
			}
			raw = raw[n:]
		}
	}
}

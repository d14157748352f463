package node

import (
	"fmt"
	"net"
	"strconv"

	"go.uber.org/zap"

	"skep.dev/libs/fault"
	"skep.dev/libs/member"
)

// renumber puts new addresses of this machine into its record, "" leaves one as it is; the services that start next go
// by them and the other nodes follow. A manager's address is in its certificate and in the record of every node: it stays.
func renumber(p Paths, rec *Record, advertise, dataPath string, log *zap.Logger) (*Record, error) {
	if advertise == "" && dataPath == "" {
		return rec, nil
	}
	if advertise != "" {
		a, err := resolveAdvertise(advertise, DefaultPort)
		if err != nil {
			return nil, fault.Invalid("%v", err)
		}
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return nil, fault.Invalid("advertise address %q: %v", advertise, err)
		}
		switch {
		case rec.Votes() && a != rec.Advertise:
			return nil, fault.Conflict("this node is a manager and every node reaches it at %s, so it cannot become %s: give the machine its old address back", rec.Advertise, a)
		case rec.Votes():
			advertise = a
		case port != strconv.Itoa(DefaultPort):
			return nil, fault.Invalid("advertise address %q: a worker listens on no port, give the address alone", advertise)
		default:
			advertise = host
		}
	}
	dataPath, err := resolveDataPath(dataPath)
	if err != nil {
		return nil, fault.Invalid("%v", err)
	}
	if (advertise == "" || advertise == rec.Advertise) && (dataPath == "" || dataPath == rec.DataPath) {
		return rec, nil
	}
	was := *rec
	rec, err = member.Update(p, func(r *Record) {
		if advertise != "" {
			r.Advertise = advertise
		}
		if dataPath != "" {
			r.DataPath = dataPath
		}
	})
	if err != nil {
		return nil, fmt.Errorf("change the node's address: %w", err)
	}
	log.Info("this node has another address", zap.String("advertise", rec.Advertise), zap.String("data_path", rec.Underlay()),
		zap.String("advertise_before", was.Advertise), zap.String("data_path_before", was.Underlay()))
	return rec, nil
}

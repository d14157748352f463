package engine

import (
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/volume"

	skepv1 "skep.dev/proto/skep/v1"
	"skep.dev/services/engine-api/internal/translate"
	"skep.dev/services/engine-api/internal/wire"
)

func (s *Service) listVolumes(w http.ResponseWriter, r *wire.Request) error {
	f, err := r.Filters("dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	dangling, filtered, err := f.TakeBool("dangling")
	if err != nil {
		return err
	}
	n, err := s.agent()
	if err != nil {
		return err
	}
	all, warnings := n.Volumes(r.Context())
	out := volume.ListResponse{Volumes: []volume.Volume{}, Warnings: slices.Concat([]string{}, warnings)}
	for _, v := range all {
		named := !f.Has("name") || slices.ContainsFunc(f["name"], func(part string) bool { return strings.Contains(v.GetName(), part) })
		if named && f.Exact("driver", v.GetDriver()) && f.Labels("label", v.GetLabels()) && (!filtered || dangling == (len(v.GetTaskIds()) == 0)) {
			out.Volumes = append(out.Volumes, translate.VolumeToDocker(v))
		}
	}
	return wire.WriteJSON(w, http.StatusOK, out)
}

func (s *Service) inspectVolume(w http.ResponseWriter, r *wire.Request) error {
	name := r.Var("id")
	gone := wire.NotFound("No such volume: %s", name)
	if s.cfg.Node == nil { // so that docker inspect tries the next kind
		return gone
	}
	n, err := s.agent()
	if err != nil {
		return err
	}
	all, _ := n.Volumes(r.Context())
	i := slices.IndexFunc(all, func(v *skepv1.Volume) bool { return v.GetName() == name })
	if i < 0 {
		return gone
	}
	return wire.WriteJSON(w, http.StatusOK, translate.VolumeToDocker(all[i]))
}

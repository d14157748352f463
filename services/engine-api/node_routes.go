package engine

import "skep.dev/services/engine-api/internal/wire"

// nodeRoutes are the endpoints of what belongs to this node alone: its containers, images and volumes, all of them tasks' of services.
func (s *Service) nodeRoutes() []wire.Route {
	out := []wire.Route{
		wire.GET("/containers/json", s.listContainers),
		wire.GET("/containers/{id}/json", s.inspectContainer),
		streaming(wire.GET("/containers/{id}/logs", s.containerLogs)),
		wire.POST("/containers/{id}/exec", s.createExec),
		streaming(wire.POST("/exec/{id}/start", s.startExec)),
		wire.POST("/exec/{id}/resize", s.resizeExec),
		wire.GET("/exec/{id}/json", s.inspectExec),
		wire.GET("/images/json", s.listImages),
		wire.GET("/images/{id...}/json", s.inspectImage),
		wire.GET("/volumes", s.listVolumes),
		wire.GET("/volumes/{id}", s.inspectVolume),
	}
	// What takes a container out of its service's hands.
	const again = "use docker service update --force SERVICE to make its tasks anew, docker service scale or rm to end them"
	for verb, what := range map[string]string{"stop": "stop", "kill": "kill", "restart": "restart", "start": "start", "pause": "pause", "unpause": "unpause", "rename": "rename", "update": "change"} {
		instead := again
		if verb == "update" {
			instead = "use docker service update SERVICE"
		}
		out = append(out, wire.POST("/containers/{id}/"+verb, s.ofService(what, instead)))
	}
	return append(out, wire.DELETE("/containers/{id}", s.ofService("remove", again)))
}

package engine

import (
	"net/http"
	"strings"

	"skep.dev/services/engine-api/internal/wire"
)

// routes are all endpoints: those that are served, then those that are refused by name.
func (s *Service) routes() wire.Routes {
	served := []wire.Route{
		wire.GET("/_ping", s.ping),
		wire.GET("/version", s.version),
		wire.GET("/info", s.info),
		streaming(wire.GET("/events", s.events)),
		wire.GET("/distribution/{name...}/json", s.distribution),

		wire.GET("/swarm", s.inspectSwarm),
		wire.POST("/swarm/update", s.updateSwarm),
		wire.GET("/swarm/unlockkey", s.unlockKey),
		wire.POST("/swarm/unlock", s.unlock),
		wire.POST("/swarm/init", s.initSwarm),
		wire.POST("/swarm/join", s.joinSwarm),
		wire.POST("/swarm/leave", s.leaveSwarm),

		wire.GET("/nodes", s.listNodes),
		wire.GET("/nodes/{id}", s.inspectNode),
		wire.POST("/nodes/{id}/update", s.updateNode),
		wire.DELETE("/nodes/{id}", s.removeNode),

		wire.GET("/services", s.listServices),
		wire.POST("/services/create", s.createService),
		wire.GET("/services/{id}", s.inspectService),
		wire.POST("/services/{id}/update", s.updateService),
		wire.DELETE("/services/{id}", s.removeService),
		streaming(wire.GET("/services/{id}/logs", s.serviceLogs)),

		wire.GET("/tasks", s.listTasks),
		wire.GET("/tasks/{id}", s.inspectTask),
		streaming(wire.GET("/tasks/{id}/logs", s.taskLogs)),

		wire.GET("/networks", s.listNetworks),
		wire.POST("/networks/create", s.createNetwork),
		wire.POST("/networks/prune", s.unserved("docker network prune", "remove networks by name: docker network rm")),
		wire.GET("/networks/{id}", s.inspectNetwork),
		wire.DELETE("/networks/{id}", s.removeNetwork),
	}
	for _, k := range []*files{aSecret, aConfig} {
		served = append(served,
			wire.GET("/"+k.word+"s", s.listFiles(k)),
			wire.POST("/"+k.word+"s/create", s.createFile(k)),
			wire.GET("/"+k.word+"s/{id}", s.inspectFile(k)),
			wire.POST("/"+k.word+"s/{id}/update", s.updateFile(k)),
			wire.DELETE("/"+k.word+"s/{id}", s.removeFile(k)),
		)
	}
	served = append(served, s.nodeRoutes()...)
	return wire.NewRoutes(append(served, s.refused()...)...)
}

// streaming is a route whose answer goes on for as long as the client wants.
func streaming(r wire.Route) wire.Route {
	r.Stream = true
	return r
}

// unserved answers 501: what is not served, and what to use instead.
func (s *Service) unserved(what, instead string) wire.Handler {
	return func(http.ResponseWriter, *wire.Request) error {
		return wire.Unserved("skep does not serve %s here: %s", what, instead)
	}
}

// Instead of what belongs to one node's containers, images and volumes.
const (
	useServices = "skep runs services, not single containers; use docker service create, or skep service create"
	useTask     = "use docker service ps and docker service logs, or skep exec, skep logs and skep stats, which reach any task from any manager"
	useImages   = "use skep image ls, pull, load and rm"
	useVolumes  = "services make the volumes they mount; use skep volume ls, create and rm"
	useBuild    = "build and push the image elsewhere, or bring it with skep image load"
	useLogin    = "use skep login and skep logout, which keep the same file"
)

// refused are the endpoints of Docker that skep does not serve. What `docker inspect NAME` tries one after the other says that it has no
// such object, so that the next kind is tried.
func (s *Service) refused() []wire.Route {
	none := func(kind string) wire.Handler {
		return func(_ http.ResponseWriter, r *wire.Request) error {
			return wire.NotFound("No such %s: %s", kind, r.Var("id"))
		}
	}
	out := []wire.Route{
		wire.GET("/plugins/{id...}/json", none("plugin")),
		wire.GET("/plugins", func(w http.ResponseWriter, _ *wire.Request) error {
			return wire.WriteJSON(w, http.StatusOK, []struct{}{}) // there are none: skep's plug-ins are programs on the node
		}),
	}
	add := func(what, instead string, routes ...string) {
		for _, r := range routes {
			method, path, _ := strings.Cut(r, " ")
			out = append(out, wire.Route{Method: method, Path: path, Do: s.unserved(what, instead)})
		}
	}
	add("docker run and docker create", useServices, "POST /containers/create")
	add("docker container", useTask, "POST /containers/{id}/{verb}", "DELETE /containers/{id}", "GET /containers/{id}/{verb}", "PUT /containers/{id}/archive", "HEAD /containers/{id}/archive",
		"POST /containers/prune", "GET /containers/{id}/attach/ws")
	add("docker commit", useBuild, "POST /commit")
	add("docker build", useBuild, "POST /build", "POST /build/{verb}", "POST /session", "POST /grpc")
	add("docker images", useImages, "GET /images/get", "GET /images/search", "GET /images/{id...}/history", "GET /images/{id...}/get")
	add("docker pull, load and push", useImages, "POST /images/create", "POST /images/load", "POST /images/prune", "POST /images/{id...}/push", "POST /images/{id...}/tag", "DELETE /images/{id...}")
	add("docker volume", useVolumes, "POST /volumes/create", "POST /volumes/prune", "DELETE /volumes/{id}", "PUT /volumes/{id}")
	add("docker network connect and disconnect", "networks belong to services; use docker service update --network-add and --network-rm", "POST /networks/{id}/connect", "POST /networks/{id}/disconnect")
	add("docker login", useLogin, "POST /auth")
	add("docker system df", "use skep top, skep image ls and skep volume ls", "GET /system/df")
	add("docker plugin", "install the plug-in on the node; skep finds it by its socket", "GET /plugins/privileges", "POST /plugins/{verb}", "POST /plugins/{id...}/{verb}", "DELETE /plugins/{id...}")
	add("docker checkpoint", useTask, "GET /containers/{id}/checkpoints/{name}", "DELETE /containers/{id}/checkpoints/{name}")
	return out
}

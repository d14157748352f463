package tutorial

import (
	"fmt"
	"strings"
	"time"
)

func health(g *Guide) {
	g.Say("A process that runs may still be of no use. A health check is a command inside the container: while it ends with 0 the task is healthy. After `--health-retries` failures (3, unless you say otherwise), each `--health-interval` (30 s) apart, the task is unhealthy: it gets no more traffic and is replaced.")
	g.Say("The database of this chapter answers on port 8091; the interval is short so that there is something to see.")
	g.Run("skep service create --name my_db \\\n    --health-cmd \"curl --fail http://localhost:8091/pools || exit 1\" \\\n    --health-interval 500ms --health-timeout 2s --health-retries 2 --health-start-period 1s \\\n    couchbase")
	first := g.tasks("my_db")[0].ID
	g.Until(20*time.Second, "skep service ps my_db", func(o Output) string {
		if !strings.Contains(o.Stdout, "(healthy)") {
			return o.Stdout
		}
		return ""
	})
	g.Say("Now the page that the check asks for disappears:")
	g.Run("skep exec my_db.1 rm /usr/local/apache2/htdocs/pools")
	g.Await("a replacement that is well", 30*time.Second, func() string {
		var ill, well bool
		ts := g.tasks("my_db")
		for _, t := range ts {
			ill = ill || t.ID == first && strings.Contains(t.Error, "unhealthy")
			well = well || t.ID != first && strings.Contains(t.State, "(healthy)")
		}
		if !ill || !well {
			return fmt.Sprint(ts)
		}
		return ""
	})
	g.Shows(g.Glance("skep service ps my_db"), "unhealthy", "(healthy)")
}

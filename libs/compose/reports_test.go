package compose

import "testing"

// What users of other tools ran into: paths below include and extends, ports of several files, output of older tools.
func TestWhatOthersRanInto(t *testing.T) {
	dir := write(t, map[string]string{
		// A file that is included extends one beside it, and has paths of its own.
		"inc/root.yml":       "include:\n  - app/app.yml\n",
		"inc/app/app.yml":    "services: {app: {extends: {file: ./common.yml, service: app}}}\n",
		"inc/app/common.yml": "services: {app: {image: 'i:1', volumes: ['.:/var/www']}}\n",
		// The folder of what is included is another than its file's.
		"proj/root.yml":         "include:\n  - {project_directory: ., path: dir/included.yml}\n",
		"proj/dir/included.yml": "services: {included: {extends: {file: dir/extended.yml, service: extended}}}\n",
		"proj/dir/extended.yml": "services: {extended: {image: 'i:1', volumes: ['./x:/x']}}\n",
		// The env file of an include stands beside the file that includes.
		"env/root.yml":      "include:\n  - {path: sub/sub.yml, env_file: [.env.defaults]}\n",
		"env/sub/sub.yml":   "services: {sub: {image: 'i:${TAG}'}}\n",
		"env/.env.defaults": "TAG=9\n",
		// depends_on of a service that is included, in one that extends.
		"dep/root.yml":   "name: mg\ninclude: [{path: [pg.yml]}]\nx-e: &e {V: foo}\nservices:\n  migrate:\n    image: 'i:1'\n    depends_on: {postgres: {condition: service_healthy, restart: false}}\n    extends: {file: shared.yml, service: shared}\n    environment: {<<: *e, W: w}\n    entrypoint: \"\"\n    command: |-\n      /bin/bash -c \"\n        kong migrations bootstrap -v\"\n",
		"dep/pg.yml":     "name: pg\nservices: {postgres: {image: 'p:1', ports: ['5432'], volumes: ['data:/d']}}\nvolumes: {data: }\n",
		"dep/shared.yml": "services: {shared: {environment: {S: s}, env_file: ./envs/a.env}}\n",
		"dep/envs/a.env": "FROM=extended\n",
		// A port that a second file publishes otherwise; several ports to one target.
		"ports/a.yml": svc("ports: ['8080:80']"),
		"ports/b.yml": "services: {web: {ports: [{target: 80, published: 8080, protocol: tcp, mode: host}]}}\n",
		"ports/c.yml": svc("ports: [{mode: host, target: 80, published: 80}, {mode: host, target: 443, published: 443}, {mode: host, target: 80, published: 8080}]"),
		// An include that is empty, an extends without a service, a second file with an empty service.
		"bad/extends.yml": svc("extends: {file: other.yml}"),
		"bad/other.yml":   svc(),
		"bad/empty.yml":   "include: [none.yml]\n" + svc(),
		"bad/none.yml":    "",
		"bad/null.yml":    "services: {web: }\n",
	})
	at := func(files ...string) func(*Options) { return func(o *Options) { o.Files, o.Dir = files, dir } }
	for _, c := range []struct {
		form
		files []string
	}{
		{form{want: []string{`"source":"` + dir + `/inc/app","target":"/var/www"`}}, []string{"inc/root.yml"}},
		{form{want: []string{`"source":"` + dir + `/proj/dir/x"`}}, []string{"proj/root.yml"}},
		{form{want: []string{`"image":"i:9"`, "no:not set"}}, []string{"env/root.yml"}},
		{form{want: []string{`"dependsOn":[{"condition":"CONDITION_HEALTHY","service":"s_postgres"}]`, `"env":["FROM=extended","S=s","V=foo","W=w"]`, `"args":["/bin/bash","-c","\n  kong migrations bootstrap -v"]`, `"source":"s_data"`}}, []string{"dep/root.yml"}},
		{form{want: []string{`"publishMode":"PUBLISH_MODE_HOST","publishedPort":8080`, "no:s_web_"}}, []string{"ports/a.yml", "ports/b.yml"}},
		{form{want: []string{`"publishedPort":80,"targetPort":80`, `"publishedPort":443,"targetPort":443`, `"publishedPort":8080,"targetPort":80`}}, []string{"ports/c.yml"}},
		{form{err: []string{"bad/extends.yml:4:"}}, []string{"bad/extends.yml"}},
		{form{err: []string{"none.yml: it is empty"}}, []string{"bad/empty.yml"}},
		{form{err: []string{"bad/null.yml:1:12: services.web: it is empty"}}, []string{"bad/other.yml", "bad/null.yml"}},
		{form{text: svc("ports: ['60000-62000:60000-62000/udp']"), err: []string{"more than 1000 ports: a service that needs so many is put on network_mode: host"}}, nil},
	} {
		if c.files == nil {
			c.run(t)
			continue
		}
		c.run(t, at(c.files...))
	}
}

package compose

import (
	"strings"
	"testing"
)

// What other tools print of a file makes the plan that the file itself makes.
func TestOutputOfOtherTools(t *testing.T) {
	dir := write(t, map[string]string{"pw": "hunter2", "web.conf": "listen 80\n", "web.env": "FROM=file\n"})
	source := `
services:
  web:
    image: example/web:1
    command: serve --port 80
    ports: ["8080:80"]
    environment: {A: "1", PRICE: 5$$}
    env_file: web.env
    volumes: ["data:/data", "./html:/html:ro"]
    secrets: [pw]
    configs: [{source: conf, target: /etc/web.conf}]
    networks: [front]
    depends_on: [db]
    healthcheck: {test: "curl -f $${URL:-localhost}", interval: 1m30s}
    deploy: {replicas: 2, resources: {limits: {cpus: "0.5", memory: 64M}}}
  db:
    image: example/db:1
    networks: [front]
networks: {front: }
volumes: {data: }
secrets: {pw: {file: ./pw}}
configs: {conf: {file: ./web.conf}}
`
	outputs := map[string]string{
		"docker compose config": `
name: shop
services:
  db:
    command: null
    entrypoint: null
    image: example/db:1
    networks:
      front: null
  web:
    command:
      - serve
      - --port
      - "80"
    configs:
      - source: conf
        target: /etc/web.conf
    depends_on:
      db:
        condition: service_started
        required: true
    deploy:
      replicas: 2
      resources:
        limits:
          cpus: 0.5
          memory: "67108864"
      placement: {}
    entrypoint: null
    environment:
      A: "1"
      FROM: file
      PRICE: 5$$
    healthcheck:
      test:
        - CMD-SHELL
        - curl -f $${URL:-localhost}
      interval: 1m30s
    image: example/web:1
    networks:
      front: null
    ports:
      - mode: ingress
        target: 80
        published: "8080"
        protocol: tcp
    secrets:
      - source: pw
        target: /run/secrets/pw
    volumes:
      - type: volume
        source: data
        target: /data
        volume: {}
      - type: bind
        source: DIR/html
        target: /html
        read_only: true
        bind:
          create_host_path: true
networks:
  front:
    name: shop_front
volumes:
  data:
    name: shop_data
secrets:
  pw:
    name: shop_pw
    file: DIR/pw
configs:
  conf:
    name: shop_conf
    file: DIR/web.conf
`,
		"docker-compose config": `
configs:
  conf:
    file: DIR/web.conf
networks:
  front: {}
secrets:
  pw:
    file: DIR/pw
services:
  db:
    image: example/db:1
    networks:
      front: {}
  web:
    command: serve --port 80
    configs:
    - source: conf
      target: /etc/web.conf
    depends_on:
    - db
    deploy:
      replicas: 2
      resources:
        limits:
          cpus: '0.5'
          memory: 64M
    environment:
      A: '1'
      FROM: file
      PRICE: 5$$
    healthcheck:
      interval: 1m30s
      test: curl -f $${URL:-localhost}
    image: example/web:1
    networks:
      front: {}
    ports:
    - published: 8080
      target: 80
    secrets:
    - source: pw
    volumes:
    - data:/data:rw
    - DIR/html:/html:ro
version: '3.8'
volumes:
  data: {}
`,
		"docker stack config": `
version: "3.13"
services:
  db:
    image: example/db:1
    networks:
      front: null
  web:
    command:
    - serve
    - --port
    - "80"
    configs:
    - source: conf
      target: /etc/web.conf
    depends_on:
    - db
    deploy:
      replicas: 2
      resources:
        limits:
          cpus: "0.5"
          memory: "67108864"
    environment:
      A: "1"
      FROM: file
      PRICE: 5$$
    healthcheck:
      test:
      - CMD-SHELL
      - curl -f $${URL:-localhost}
      interval: 1m30s
    image: example/web:1
    networks:
      front: null
    ports:
    - mode: ingress
      target: 80
      published: 8080
      protocol: tcp
    secrets:
    - source: pw
    volumes:
    - type: volume
      source: data
      target: /data
    - type: bind
      source: DIR/html
      target: /html
      read_only: true
networks:
  front: {}
volumes:
  data: {}
secrets:
  pw:
    file: DIR/pw
configs:
  conf:
    file: DIR/web.conf
`,
	}
	in := func(o *Options) { o.Dir = dir }
	want := show(t, mustLoad(t, source, in).Spec, " ")
	for tool, text := range outputs {
		s := mustLoad(t, strings.ReplaceAll(text, "DIR", dir), in)
		if got := show(t, s.Spec, " "); got != want {
			t.Errorf("the output of %s makes\n%s\nwant\n%s", tool, got, want)
		}
		roundTrip(t, s, in)
	}
}

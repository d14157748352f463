package compose

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// show prints a message as JSON that is the same every time.
func show(t testing.TB, m proto.Message, indent string) string {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// svc is a file with one service, web, that has these lines.
func svc(lines ...string) string {
	out := "services:\n  web:\n    image: i:1\n"
	for _, l := range lines {
		for _, line := range strings.Split(l, "\n") {
			out += "    " + line + "\n"
		}
	}
	return out
}

// form is a way of writing something, and what becomes of it. A want that begins with "note:" or "no:" is of the notes, or
// must not be there; every other one is a part of the StackSpec as JSON. With err set it is refused, with these words.
type form struct {
	name string
	text string
	env  []string
	want []string
	err  []string
}

func (f form) run(t *testing.T, more ...func(*Options)) {
	t.Helper()
	more = append([]func(*Options){func(o *Options) { o.Env = f.env }}, more...)
	s, err := load(t, f.text, more...)
	if len(f.err) > 0 {
		if err == nil {
			t.Fatalf("accepted, want a refusal with %q\n%s\n%s", f.err, f.text, show(t, s.Spec, ""))
		}
		for _, w := range f.err {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("refused with\n%v\nwant %q\n%s", err, w, f.text)
			}
		}
		return
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, f.text)
	}
	text, notes := show(t, s.Spec, ""), ""
	for _, n := range s.Notes {
		notes += n.String() + "\n"
	}
	for _, w := range f.want {
		if n, ok := strings.CutPrefix(w, "note:"); ok {
			if !strings.Contains(notes, n) {
				t.Errorf("no note has %q\n%s\n%s", n, notes, f.text)
			}
		} else if n, ok := strings.CutPrefix(w, "no:"); ok {
			if strings.Contains(text+notes, n) {
				t.Errorf("it has %q\n%s\n%s\n%s", n, text, notes, f.text)
			}
		} else if !strings.Contains(text, w) {
			t.Errorf("%s\nhas no %s\n%s", text, w, f.text)
		}
	}
	roundTrip(t, s, more...)
}

// roundTrip: what Marshal prints makes the same StackSpec, and itself again.
func roundTrip(t *testing.T, s *Stack, more ...func(*Options)) {
	t.Helper()
	out, err := Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	again, err := load(t, string(out), append(more, func(o *Options) { o.Files, o.Stdin, o.Profiles = []string{"-"}, bytes.NewReader(out), []string{"*"} })...)
	if err != nil {
		t.Fatalf("what it printed is refused: %v\n%s", err, out)
	}
	if a, b := show(t, s.Spec, " "), show(t, again.Spec, " "); a != b {
		t.Fatalf("what it printed is another stack:\n%s\n--- printed\n%s\n--- again\n%s", a, out, b)
	}
	if out2, _ := Marshal(again); !bytes.Equal(out, out2) {
		t.Fatalf("printed again it is\n%s\n--- was\n%s", out2, out)
	}
}

// The numbers of what compose-go reads otherwise than Docker.
func TestNumbersOfDifferences(t *testing.T) {
	vol := "\nvolumes: {da: {}, db: {}}"
	sec := "\nsecrets: {s: {environment: S}}\nconfigs: {c: {content: x}}"
	for _, f := range []form{
		{name: "1 command with &", text: svc(`command: srv --url http://h/?a=1&b=2`), want: []string{`"args":["srv","--url","http://h/?a=1&b=2"]`}},
		{name: "1 command with ;", text: svc(`command: srv a;b`), want: []string{`"args":["srv","a;b"]`}},
		{name: "1 command with >", text: svc(`command: srv > /log`), want: []string{`"args":["srv",">","/log"]`}},
		{name: "1 command with |", text: svc(`command: srv a|b`), want: []string{`"args":["srv","a|b"]`}},
		{name: "1 entrypoint", text: svc(`entrypoint: sh -c x|y`), want: []string{`"command":["sh","-c","x|y"]`}},
		{name: "1 brackets", text: svc(`command: srv --f=(x)`), want: []string{`"args":["srv","--f=(x)"]`}},
		{name: "1 comment", text: svc(`command: "srv #x"`), want: []string{`"args":["srv"]`}},
		{name: "1 quotes", text: svc(`command: sh -c "a && b; c" 'd e'`), want: []string{`"args":["sh","-c","a && b; c","d e"]`}},
		{name: "1 several lines", text: svc("command: >\n  srv --a\n  --b=1&2"), want: []string{`"args":["srv","--a","--b=1&2"]`}},
		{name: "1 extended", text: "services:\n  base: {image: i:1, command: srv a;b, profiles: [never]}\n  web: {extends: {service: base}, profiles: !reset null}\n", want: []string{`"args":["srv","a;b"]`}},
		{name: "2 two mounts on a target", text: svc(`volumes: ["/a:/x", "/b:/x"]`), err: []string{"stdin:4:24: services.web.volumes.1: volume 1 is mounted at /x too"}},
		{name: "2 long form", text: svc(`volumes: ["da:/x", {type: volume, source: db, target: /x/}]`) + vol, err: []string{"services.web.volumes.1: volume 1 is mounted at /x too"}},
		{name: "2 tmpfs and volume", text: svc(`volumes: ["/a:/x"]`, `tmpfs: /x`), err: []string{"services.web.tmpfs.0: something else is mounted at /x"}},
		{name: "3 two documents", text: svc() + "---\n" + svc(), err: []string{"stdin:4:1: a second YAML document begins here"}},
		{name: "5 empty value", text: svc(`environment: ["A="]`), env: []string{"A=shell"}, want: []string{`"env":["A="]`}},
		{name: "5 empty value of a map", text: svc(`environment: {A: ""}`), env: []string{"A=shell"}, want: []string{`"env":["A="]`}},
		{name: "6 name alone, not set", text: svc(`environment: [A]`), want: []string{`"env":["A"]`, "note:stdin:4:19: services.web.environment.A: it has no value"}},
		{name: "6 null, not set", text: svc(`environment: {A: }`), want: []string{`"env":["A"]`}},
		{name: "6 name alone, set", text: svc(`environment: [A]`), env: []string{"A=shell $X"}, want: []string{`"env":["A=shell $X"]`}},
		{name: "6 null, set", text: svc(`environment: {A: }`), env: []string{"A=shell"}, want: []string{`"env":["A=shell"]`}},
		{name: "7 short", text: svc(`secrets: [s]`, `configs: [c]`) + sec, env: []string{"S=v"}, want: []string{`"secrets":[{"name":"s_s","target":"s"}]`, `"configs":[{"name":"s_c","target":"c"}]`}},
		{name: "7 relative target", text: svc(`secrets: [{source: s, target: x}]`, `configs: [{source: c, target: /etc/c}]`) + sec, env: []string{"S=v"}, want: []string{`"target":"x"`, `"target":"/etc/c"`}},
		{name: "7 absolute target below the folder", text: svc(`secrets: [{source: s, target: /run/secrets/x}]`) + sec, env: []string{"S=v"}, want: []string{`"target":"x"`}},
		{name: "8 extra_hosts", text: svc(`extra_hosts: ["a:10.0.0.1", "b=10.0.0.2", "c:::1"]`), want: []string{`"hosts":["10.0.0.1 a","10.0.0.2 b","::1 c"]`}},
		{name: "8 extra_hosts map", text: svc(`extra_hosts: {a: 10.0.0.1}`), want: []string{`"hosts":["10.0.0.1 a"]`}},
		{name: "8 host-gateway", text: svc(`extra_hosts: ["a:host-gateway"]`), err: []string{"host-gateway has no address in a cluster"}},
		{name: "9 cpus", text: svc(`deploy: {resources: {limits: {cpus: "0.1"}, reservations: {cpus: "0.003"}}}`), want: []string{`"limits":{"nanoCpus":"100000000"}`, `"reservations":{"nanoCpus":"3000000"}`}},
		{name: "9 many digits", text: svc(`deploy: {resources: {limits: {cpus: "1.123456789"}}}`), want: []string{`"nanoCpus":"1123456789"`}},
		{name: "9 too many digits", text: svc(`deploy: {resources: {limits: {cpus: "0.1234567891"}}}`), err: []string{"at most 9 digits"}},
		{name: "10 range", text: svc(`ports: ["8000-8001:80-81/udp"]`), want: []string{`"publishedPort":8000,"targetPort":80`, `"publishedPort":8001,"targetPort":81`}},
		{name: "10 range to one", text: svc(`ports: ["8000-8004:8000"]`), want: []string{`"publishedPort":8004,"targetPort":8000`}},
		{name: "10 bad mode", text: svc(`ports: [{target: 80, mode: hots}]`), err: []string{`services.web.ports.0: unknown mode "hots"`}},
		{name: "10 bad protocol", text: svc(`ports: [{target: 80, protocol: tpc}]`), err: []string{`unknown protocol "tpc"`}},
		{name: "10 bad endpoint_mode", text: svc(`deploy: {endpoint_mode: vpi}`), err: []string{"services.web.deploy.endpoint_mode: unknown mode"}},
		{name: "10 endpoint_mode in capitals", text: svc(`deploy: {endpoint_mode: DNSRR}`), want: []string{`"mode":"MODE_DNSRR"`}},
		{name: "10 condition always", text: svc(`deploy: {restart_policy: {condition: always}}`), err: []string{"services.web.deploy.restart_policy.condition: always is a word of restart: here it is any"}},
		{name: "10 bad failure_action", text: svc(`deploy: {update_config: {failure_action: rolback}}`), err: []string{"failure_action: unknown action"}},
		{name: "10 bad order", text: svc(`deploy: {update_config: {order: start}}`), err: []string{"update_config.order"}},
		{name: "11 global with replicas", text: svc(`deploy: {mode: global, replicas: 2}`), err: []string{"services.web.deploy.replicas: a service of mode global runs once on every node"}},
		{name: "11 unknown mode", text: svc(`deploy: {mode: globl}`), err: []string{"services.web.deploy.mode: unknown mode"}},
		{name: "11 disable with test", text: svc(`healthcheck: {disable: true, test: "x"}`), err: []string{"the check is disabled and has a test"}},
		{name: "11 image in capitals", text: "services: {web: {image: Web}}", err: []string{"services.web.image"}},
		{name: "11 empty tag", text: "services: {web: {image: 'i:${TAG}'}}", err: []string{"stdin:1:18: services.web.image: ", "(the variable TAG is not set)"}},
		{name: "11 no image", text: "services: {web: {hostname: x}}", err: []string{"services.web: the service has no image"}},
		{name: "11 build without image", text: "services: {web: {build: .}}", err: []string{"services.web.build: the service has build but no image"}},
		{name: "12 kind conversions", text: svc(`deploy: {replicas: "2", resources: {limits: {cpus: 0.5}}}`, `ulimits: {nofile: "65536"}`, `healthcheck: {test: x, retries: "3"}`, `tty: "true"`,
			`ports: [{target: 80, published: "8080"}]`, `environment: {DEBUG: true}`, `labels: {traefik.enable: true}`, `volumes: [{type: tmpfs, target: /t, tmpfs: {size: 64m}}]`,
			`secrets: [{source: s, mode: "0440"}]`) + "\nsecrets: {s: {external: \"true\"}}", want: []string{`"replicas":"2"`, `"nanoCpus":"500000000"`, `{"hard":"65536","name":"nofile","soft":"65536"}`, `"retries":3`, `"tty":true`,
			`"publishedPort":8080`, `"DEBUG=true"`, `"traefik.enable":"true"`, `"tmpfsSize":"67108864"`, `"mode":288`}},
		{name: "13 the same item twice", text: svc(`ports: ["80:80", "80:80"]`, `environment: [A=1, A=1]`, `cap_add: [NET_ADMIN, NET_ADMIN]`), err: []string{"the items 1 and 2 are the same"}},
		{name: "15 unset inside", text: svc(`hostname: a-${X}-b`), want: []string{`"hostname":"a--b"`, "note:stdin:4:15: services.web.hostname: the variable X is not set"}},
		{name: "range to one target, and others", text: svc(`ports: ["80", ":81", "127.0.0.1::82"]`), err: []string{"not on 127.0.0.1 alone"}},
		{name: "required variable with a dash in its message", text: svc(`hostname: "${TOKEN:?run gen -n 16}"`), env: []string{"TOKEN=t"}, want: []string{`"hostname":"t"`}},
		{name: "required variable", text: svc(`hostname: "${TOKEN:?run gen -n 16}"`), err: []string{"stdin:4:15: services.web.hostname: the variable TOKEN is required and has no value: run gen -n 16"}},
	} {
		t.Run(f.name, func(t *testing.T) { f.run(t) })
	}
}

// 4: env files are read raw; 14: several files.
func TestNumbersWithFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"stack.yml": svc("env_file: a.env", `ports: ["443:443", "80:80"]`, "environment: {OVER: map}", `command: [a]`, `volumes: ["/one:/x", "/keep:/y"]`),
		"a.env":     "# comment\n\n  Q=\"quoted\"\nD=$HOME\nC=x # y\nBLANK=1 \nNAME\nUNSET\nOVER=file\nCR=1\r\n",
		"over.yml":  "services: {web: {ports: [\"443:8443\"], command: [b], volumes: [\"/two:/x\"], deploy: {replicas: 3}}}",
		"bad.env":   "export A=1\nB C=secretvalue\n=x\nok=1\n",
		"bad.yml":   svc("env_file: [bad.env, missing.env]"),
		"check.yml": svc(`healthcheck: {test: "x"}`),
		"none.yml":  "services: {web: {healthcheck: {disable: true}}}",
		"opt.yml":   svc("env_file: [{path: missing.env, required: false}]"),
	})
	at := func(files ...string) func(*Options) {
		return func(o *Options) { o.Files, o.Dir, o.Env = files, dir, []string{"NAME=shell"} }
	}
	form{want: []string{`"env":["BLANK=1 ","C=x # y","CR=1","D=$HOME","NAME=shell","OVER=map","Q=\"quoted\""]`,
		"note:a.env:3:1: Q: the quotes are a part", "note:a.env:4:1: D: the $ is a part", "note:a.env:5:1: C: what follows #", "note:a.env:6:1: BLANK: the blanks", "note:a.env:8:1: UNSET: it has no value"}}.run(t, at("stack.yml"))
	form{want: []string{`"publishedPort":443,"targetPort":8443`, `"publishedPort":80,"targetPort":80`, `no:"targetPort":443`, `"args":["b"]`, `"source":"/two","target":"/x"`, `"source":"/keep"`, `no:/one`, `"replicas":"3"`}}.run(t, at("stack.yml", "over.yml"))
	form{err: []string{`bad.env:1:1: "export" is the shell's`, "bad.env:2:1: the name before =", "bad.env:3:1: the name before =", "bad.yml:4:25: services.web.env_file.1: cannot read the env file missing.env: there is no such file"}}.run(t, at("bad.yml"))
	form{want: []string{`"health":{"test":["NONE"]}`}}.run(t, at("check.yml", "none.yml"))
	form{err: []string{"the check is disabled and has a test"}}.run(t, at("none.yml", "check.yml"))
	form{want: []string{"note:opt.yml:4:16: services.web.env_file.0: missing.env is not read: there is no such file"}}.run(t, at("opt.yml"))
	_, err := load(t, "", at("bad.yml"))
	if strings.Contains(err.Error(), "secretvalue") {
		t.Errorf("the error has a value of the env file: %v", err)
	}
}

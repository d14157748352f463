package specflag

import (
	"strings"
	"time"

	"github.com/spf13/pflag"

	skepv1 "skep.dev/proto/skep/v1"
)

// Flags holds every flag of `service create` or `service update`.
type Flags struct {
	fs     *pflag.FlagSet
	update bool

	// LookupEnv resolves bare `--env KEY`s. Set by the caller.
	LookupEnv func(string) (string, bool)
	// NetworkID finds a network's id by name or id: stored services name ids. nil leaves references as they are. Set by
	// the caller; called on update alone, and only for --network-add and --network-rm.
	NetworkID func(ref string) (string, error)

	// Assigned are the ports the service has, with the numbers the cluster chose for those whose spec names none. Set by
	// the caller, on update alone.
	Assigned []*skepv1.PortConfig

	// ServiceID is the same for the services named by --depends-on-add and --depends-on-rm.
	ServiceID func(ref string) (string, error)

	absent []string // what --…-rm named and the service does not have

	schedule                                 scheduleFlags
	depends                                  addRm[*skepv1.Dependency]
	name, mode                               *scalar[string]
	replicas, maxConcurrent, maxPerNode      *scalar[uint64]
	image, args, entrypoint                  *scalar[string]
	workdir, user, hostname                  *scalar[string]
	stopSignal, isolation, credential        *scalar[string]
	secretSignal, configSignal               *scalar[string]
	init, tty, readOnly, volumePin           *boolean
	stopGrace                                *scalar[time.Duration]
	oomScore                                 *scalar[int64]
	limitCPU, reserveCPU                     *scalar[int64]
	limitMem, reserveMem, limitPids          *scalar[int64]
	swap, swappiness                         *scalar[int64]
	restartCond                              *scalar[skepv1.RestartCondition]
	restartDelay, restartWindow              *scalar[time.Duration]
	restartBackoff                           *scalar[time.Duration]
	healthBudget                             *scalar[uint64]
	restartMax                               *scalar[uint64]
	up, back                                 updateFlags
	endpointMode                             *scalar[skepv1.EndpointSpec_Mode]
	dnsStarting                              *boolean
	healthCheck, readyCheck                  checkFlags
	noHealth, noReady                        *boolean
	logDriver                                *scalar[string]
	logOpts, envFiles, capAdd, capDrop       *list[string]
	onPartition                              *scalar[skepv1.PartitionPolicy]
	groups, env, labels, containerLabels     addRm[string]
	sysctls, constraints                     addRm[string]
	dns, dnsOptions, dnsSearch, hosts        addRm[string]
	ulimits                                  addRm[*skepv1.Ulimit]
	generic                                  addRm[*skepv1.GenericResource]
	prefs                                    addRm[*skepv1.PlacementPreference]
	publish                                  addRm[*skepv1.PortConfig]
	networks                                 addRm[*skepv1.NetworkAttachment]
	mounts                                   addRm[*skepv1.Mount]
	secrets, configs                         addRm[*skepv1.FileReference]
	registryAuth, noResolve, force, rollback *boolean
}

type updateFlags struct {
	parallelism    *scalar[uint64]
	delay, monitor *scalar[time.Duration]
	timeout        *scalar[time.Duration]
	action         *scalar[skepv1.FailureAction]
	ratio          *scalar[float64]
	order          *scalar[skepv1.UpdateOrder]
}

// addRm is --X on create, and --X-add with --X-rm on update.
type addRm[T any] struct {
	add *list[T]
	rm  *list[string]
}

func (a addRm[T]) touched() bool { return a.add.set() || a.rm != nil && a.rm.set() }

// Create registers the flags of `service create`.
func Create(fs *pflag.FlagSet) *Flags { return register(fs, false) }

// Update registers the flags of `service update`.
func Update(fs *pflag.FlagSet) *Flags { return register(fs, true) }

func addScalar[T any](f *Flags, name, short, typ, usage string, parse func(string) (T, error)) *scalar[T] {
	s := &scalar[T]{typ: typ, parse: parse}
	f.fs.VarP(s, name, short, usage)
	return s
}

func addBool(f *Flags, name, short, usage string) *boolean {
	b := &boolean{scalar[bool]{typ: "bool", parse: parseBool}}
	f.fs.VarPF(b, name, short, usage).NoOptDefVal = "true"
	return b
}

func addList(f *Flags, name, short, typ, usage string) *list[string] {
	l := &list[string]{typ: typ, parse: one(text)}
	f.fs.VarP(l, name, short, usage)
	return l
}

func addPair[T any](f *Flags, name, short, typ, createHelp, addHelp, rmHelp string, parse func(string) ([]T, error), parseRm func(string) (string, error)) addRm[T] {
	a := addRm[T]{add: &list[T]{typ: typ, parse: parse}}
	if !f.update {
		f.fs.VarP(a.add, name, short, createHelp)
		return a
	}
	a.rm = &list[string]{typ: "list", parse: one(parseRm)}
	f.fs.Var(a.add, name+"-add", addHelp)
	f.fs.Var(a.rm, name+"-rm", rmHelp)
	return a
}

func register(fs *pflag.FlagSet, update bool) *Flags {
	f := &Flags{fs: fs, update: update, LookupEnv: func(string) (string, bool) { return "", false }}
	fs.SortFlags = true
	if update {
		f.image = addScalar(f, "image", "", "string", "Image to run from now on", text)
		f.args = addScalar(f, "args", "", "command", "Arguments of the command", text)
		f.force = addBool(f, "force", "", "Replace every task even when nothing changed")
		f.rollback = addBool(f, "rollback", "", "Go back to the previous revision")
	} else {
		f.name = addScalar(f, "name", "", "string", "Name of the service (default: a random one)", text)
		f.mode = addScalar(f, "mode", "", "string", `"replicated", "global", "replicated-job" or "global-job" (default replicated)`, parseMode)
		f.envFiles = addList(f, "env-file", "", "list", "Read environment variables from a file")
	}
	f.replicas = addScalar(f, "replicas", "", "uint", "Number of tasks", parseUint)
	f.maxConcurrent = addScalar(f, "max-concurrent", "", "uint", "Job tasks to run at the same time (default equal to --replicas)", parseUint)
	f.volumePin = addBool(f, "volume-pin", "", "Keep a task on the node where the one before it left its local volumes")
	f.maxPerNode = addScalar(f, "replicas-max-per-node", "", "uint", "Most tasks on one node (0 = no limit)", parseUint)
	f.registerContainer()
	f.registerResources()
	f.registerPlacement()
	f.registerRollout()
	f.registerEndpoint()
	f.registerHealth()
	f.registerJob()
	return f
}

func (f *Flags) registerContainer() {
	f.entrypoint = addScalar(f, "entrypoint", "", "command", "Replace the image's ENTRYPOINT (and its CMD)", text)
	f.workdir = addScalar(f, "workdir", "w", "string", "Working directory inside the container", text)
	f.user = addScalar(f, "user", "u", "string", "User to run as: name or uid, with an optional :group", text)
	f.hostname = addScalar(f, "hostname", "", "string", "Host name inside the container; may be a template", text)
	f.groups = addPair(f, "group", "", "list", "Supplementary group of the user", "Add a supplementary group", "Remove a supplementary group", one(text), text)
	f.env = addPair(f, "env", "e", "list", "Set an environment variable (KEY alone takes the value from here)",
		"Add or change an environment variable", "Remove an environment variable", one(parseEnv), text)
	f.labels = addPair(f, "label", "l", "list", "Label of the service", "Add or change a label of the service", "Remove a label of the service by its key", one(ParseLabel), text)
	f.containerLabels = addPair(f, "container-label", "", "list", "Label of the containers", "Add or change a label of the containers",
		"Remove a label of the containers by its key", one(ParseLabel), text)
	f.init = addBool(f, "init", "", "Run an init in the container that forwards signals and reaps processes")
	f.tty = addBool(f, "tty", "t", "Give the container a terminal")
	f.readOnly = addBool(f, "read-only", "", "Mount the container's root file system read only")
	f.secretSignal = addScalar(f, "secret-update-signal", "", "string", "Signal for tasks once newer versions of their secrets stand in their files (default: tasks are replaced)", text)
	f.configSignal = addScalar(f, "config-update-signal", "", "string", "The same for configs", text)
	f.stopSignal = addScalar(f, "stop-signal", "", "string", "Signal that asks the container to stop", text)
	f.stopGrace = addScalar(f, "stop-grace-period", "", "duration", "Time from the stop signal to a kill (default 10s)", parseDuration("stop-grace-period"))
	f.isolation = addScalar(f, "isolation", "", "string", "Container isolation (Windows; stored, not acted on)", text)
	f.credential = addScalar(f, "credential-spec", "", "credential-spec", "Managed service account (Windows; stored, not acted on)", parseCredential)
	f.capAdd = addList(f, "cap-add", "", "list", "Add a Linux capability")
	f.capDrop = addList(f, "cap-drop", "", "list", "Drop a Linux capability")
	f.sysctls = addPair(f, "sysctl", "", "list", "Set a kernel parameter of the container", "Add or change a kernel parameter", "Remove a kernel parameter by its key",
		one(parsePair("sysctl")), text)
	f.ulimits = addPair(f, "ulimit", "", "ulimit", "Set a limit: type=soft[:hard]", "Add or change a limit", "Remove a limit by its type", one(parseUlimit), text)
	f.oomScore = addScalar(f, "oom-score-adj", "", "int", "Adjust how readily the kernel kills it (-1000 to 1000)", parseBounded(-1000, 1000))
	f.hosts = addPair(f, "host", "", "list", "Add a host-to-address entry: host:ip", "Add a host-to-address entry: host:ip", "Remove a host-to-address entry: host:ip",
		one(parseHost), text)
	f.dns = addPair(f, "dns", "", "list", "Name server of the containers", "Add a name server", "Remove a name server", one(parseIP), parseIP)
	f.dnsOptions = addPair(f, "dns-option", "", "list", "Resolver option", "Add a resolver option", "Remove a resolver option", one(text), text)
	f.dnsSearch = addPair(f, "dns-search", "", "list", "Search domain", "Add a search domain", "Remove a search domain", one(parseDomain), text)
	f.mounts = addPair(f, "mount", "", "mount", "Attach a file system: type=,source=,target=,…", "Add or change a mount", "Remove a mount by its target path", one(ParseMount), text)
	f.secrets = addPair(f, "secret", "", "secret", "Give the containers a secret", "Add or change a secret", "Remove a secret", one(parseFile), text)
	f.configs = addPair(f, "config", "", "config", "Give the containers a config", "Add or change a config", "Remove a config", one(parseFile), text)
	f.logDriver = addScalar(f, "log-driver", "", "string", "Logging driver", text)
	f.logOpts = addList(f, "log-opt", "", "list", "Option of the logging driver: key=value")
	f.registryAuth = addBool(f, "with-registry-auth", "", "Give the nodes your credentials for the image's registry (skep login), sealed")
	f.noResolve = addBool(f, "no-resolve-image", "", "Leave the tag as it is instead of asking the registry for its digest")
}

func (f *Flags) registerResources() {
	f.limitCPU = addScalar(f, "limit-cpu", "", "decimal", "Most CPUs a task may use", ParseCPUs)
	f.reserveCPU = addScalar(f, "reserve-cpu", "", "decimal", "CPUs to keep free for a task", ParseCPUs)
	f.limitMem = addScalar(f, "limit-memory", "", "bytes", "Most memory a task may use", ParseBytes)
	f.reserveMem = addScalar(f, "reserve-memory", "", "bytes", "Memory to keep free for a task", ParseBytes)
	f.limitPids = addScalar(f, "limit-pids", "", "int", "Most processes of a task (0 = no limit)", parseInt)
	f.swap = addScalar(f, "memory-swap", "", "bytes", "Swap a task may use on top of its memory limit (-1 = no limit)", parseSwap)
	f.swappiness = addScalar(f, "memory-swappiness", "", "int", "How readily a task's memory is swapped out (0 to 100)", parseBounded(-1, 100))
	f.generic = addPair(f, "generic-resource", "", "list", "Reserve a resource the nodes offer: name=number", "Add or change a reserved resource", "Remove a reserved resource by its name",
		one(parseGeneric), text)
}

func (f *Flags) registerPlacement() {
	f.constraints = addPair(f, "constraint", "", "list", "Run only on nodes that satisfy this: key==value or key!=value", "Add a placement constraint", "Remove a placement constraint", one(parseConstraint), text)
	f.prefs = addPair(f, "placement-pref", "", "pref", "Spread evenly over the values of a label: spread=node.labels.zone", "Add a placement preference", "Remove a placement preference",
		one(parsePreference), text)
	f.onPartition = addScalar(f, "on-partition", "", "string", `What a node that lost the managers does with the tasks: "keep" or "stop" (default keep)`, parsePartition)
}

func (f *Flags) registerRollout() {
	f.restartCond = addScalar(f, "restart-condition", "", "string", `When a task that ended is replaced: "none", "on-failure" or "any" (default any)`, parseRestart)
	f.restartDelay = addScalar(f, "restart-delay", "", "duration", "Wait before a failed task is replaced (default 5s)", parseDuration("restart-delay"))
	f.restartBackoff = addScalar(f, "restart-backoff", "", "duration", "Most a task that keeps failing waits, twice as long each time (default 5m, 0 = always the delay)", parseDuration("restart-backoff"))
	f.restartWindow = addScalar(f, "restart-window", "", "duration", "Time within which attempts count (default: for ever)", parseDuration("restart-window"))
	f.restartMax = addScalar(f, "restart-max-attempts", "", "uint", "Attempts before giving up (default: no limit)", parseUint)
	for _, g := range []struct {
		to     *updateFlags
		prefix string
		word   string
		action func(string) (skepv1.FailureAction, error)
		what   string
	}{
		{&f.up, "update", "an update", parseUpdateAction, `"pause", "continue" or "rollback" (default pause)`},
		{&f.back, "rollback", "a rollback", parseRollbackAction, `"pause" or "continue" (default pause)`},
	} {
		g.to.parallelism = addScalar(f, g.prefix+"-parallelism", "", "uint", "Tasks to replace at the same time in "+g.word+" (0 = all; default 1)", parseUint)
		g.to.delay = addScalar(f, g.prefix+"-delay", "", "duration", "Wait between one group of tasks and the next in "+g.word+" (default 0s)", parseDuration(g.prefix+"-delay"))
		g.to.monitor = addScalar(f, g.prefix+"-monitor", "", "duration", "Watch each new task this long for failure in "+g.word+" (default 5s)", parseDuration(g.prefix+"-monitor"))
		g.to.timeout = addScalar(f, g.prefix+"-timeout", "", "duration", "A new task that does not serve within this long counts as failed in "+g.word+" (0 = never; default 10m)", parseDuration(g.prefix+"-timeout"))
		g.to.action = addScalar(f, g.prefix+"-failure-action", "", "string", "What a failed "+g.prefix+" does: "+g.what, g.action)
		g.to.ratio = addScalar(f, g.prefix+"-max-failure-ratio", "", "float", "Share of tasks that may fail in "+g.word+" (default 0)", parseRatio(g.prefix+"-maxfailureratio"))
		g.to.order = addScalar(f, g.prefix+"-order", "", "string", `Order in `+g.word+`: "start-first" or "stop-first" (default stop-first)`, parseOrder)
	}
}

func (f *Flags) registerEndpoint() {
	f.endpointMode = addScalar(f, "endpoint-mode", "", "string", `How the service's name resolves: "vip" or "dnsrr" (default vip)`, parseEndpointMode)
	f.dnsStarting = addBool(f, "dns-starting", "", "List tasks under tasks.NAME from their start, whatever their checks say (for members whose checks need one another's names)")
	f.publish = addPair(f, "publish", "p", "port", "Publish a port: [published:]target[/protocol] or the long form", "Add or change a published port", "Remove a published port: target[/protocol] or published:target[/protocol]",
		ParsePorts, func(s string) (string, error) { _, err := ParsePorts(s); return s, err })
	f.networks = addPair(f, "network", "", "network", "Attach to a network", "Attach to a network", "Detach from a network", one(ParseNetwork), text)
}

func parseConstraint(s string) (string, error) {
	if !strings.Contains(s, "==") && !strings.Contains(s, "!=") {
		return "", invalidf("constraint expected one operator from ==, !=: %q", s)
	}
	return s, nil
}

// NoResolve is --no-resolve-image.
func (f *Flags) NoResolve() bool { return f.noResolve.val }

// ImageNamed tells whether --image was given (update only).
func (f *Flags) ImageNamed() bool { return f.image != nil && f.image.set }

// RegistryAuth is --with-registry-auth.
func (f *Flags) RegistryAuth() bool { return f.registryAuth.val }

// NoRegistryAuth is --with-registry-auth=false: the service is to have no credentials any more.
func (f *Flags) NoRegistryAuth() bool { return f.registryAuth.set && !f.registryAuth.val }

// Rollback is --rollback (update only).
func (f *Flags) Rollback() bool { return f.rollback != nil && f.rollback.val }

// Monitor is how long --update-monitor asks to watch, if it was given.
func (f *Flags) Monitor() (time.Duration, bool) { return f.up.monitor.val, f.up.monitor.set }

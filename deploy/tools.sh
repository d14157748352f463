#!/usr/bin/env bash
# Installs what skep needs beside itself, on a Debian that has Go, make and git:
#
#   deploy/tools.sh runtime   containerd, its shim, ctr, runc and the packages a node needs
#   deploy/tools.sh lab       runtime, and what the lab and tests need: a registry, the nats and docker commands, curl, dig, nc, mmdebstrap, ...
#   deploy/tools.sh engine    a Docker Engine and Compose for hosts of the lab; nothing of them is installed on this machine
#   deploy/tools.sh proto     buf and protoc-gen-go
#   deploy/tools.sh lint      staticcheck
#
# Debian packages are installed when they are missing (this needs root). The rest is built by `go install` at the versions
# of deploy/versions.env into ${SKEP_CACHE:-~/.cache/skep}/tools/<name>-<version> and linked into bin/tools, so a second
# clone or a second run builds nothing.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=versions.env
. "$root/deploy/versions.env"
cache=${SKEP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skep}/tools
bin=$root/bin/tools
mkdir -p "$cache" "$bin"

say() { printf 'tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v go >/dev/null || die "go is missing: install Go $(sed -n 's/^go //p' "$root/go.work") or newer from https://go.dev/dl and put it on the PATH"

# packages PKG=PROGRAM|FILE ... installs each package whose program (or file, when it begins with /) is missing.
packages() {
	local missing=() pair pkg probe
	for pair in "$@"; do
		pkg=${pair%%=*} probe=${pair#*=}
		case $probe in
		/*) compgen -G "$probe" >/dev/null && continue ;;
		*) PATH=$PATH:/usr/sbin:/sbin command -v "$probe" >/dev/null && continue ;;
		esac
		missing+=("$pkg")
	done
	[ ${#missing[@]} -eq 0 ] && return
	command -v apt-get >/dev/null || die "missing: ${missing[*]}; this is not a Debian, install their like by hand"
	[ "$(id -u)" = 0 ] || die "missing packages; run as root: apt-get install -y --no-install-recommends ${missing[*]}"
	say "installing Debian packages: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
		die "apt-get could not install ${missing[*]}"
}

# tool NAME VERSION PACKAGE [BUILD FLAG...] builds PACKAGE@VERSION once and links it into bin/tools. Another build of the
# same version has another $variant.
tool() {
	local name=$1 version=$2 pkg=$3
	shift 3
	local out=$cache/$name-$version${variant:+-$variant}
	if [ ! -x "$out" ]; then
		exec 9>"$cache/.lock"
		flock 9 # two clones building at once: the second finds it done
		if [ ! -x "$out" ]; then
			say "building $name $version (once; kept in $cache)"
			local tmp
			tmp=$(mktemp -d "$cache/.build-XXXXXX")
			# GOFLAGS, GOWORK and CGO_ENABLED of the caller must not leak in; everything else (proxy, caches) should.
			(cd "$tmp" && GOFLAGS=-buildvcs=false GOWORK=off CGO_ENABLED=${cgo:-1} GOBIN=$tmp go install -trimpath -ldflags '-s -w' "$@" "$pkg@$version") ||
				{ rm -rf "$tmp"; die "building $name $version did not work: see above"; }
			mv "$tmp/$name" "$out"
			rm -rf "$tmp"
		fi
		exec 9>&-
	fi
	ln -sfn "$out" "$bin/$name"
}

runtime() {
	packages gcc=gcc libc6-dev=/usr/include/stdlib.h pkg-config=pkg-config libseccomp-dev=/usr/include/seccomp.h \
		iproute2=ip nftables=nft iptables=iptables conntrack=conntrack ca-certificates=/etc/ssl/certs/ca-certificates.crt
	local ctd=github.com/containerd/containerd/v2/cmd
	tool containerd "$CONTAINERD_VERSION" $ctd/containerd
	# Static: both are executed several times for every container, and the loader was a fifth of what runc costs.
	variant=static cgo=0 tool containerd-shim-runc-v2 "$CONTAINERD_VERSION" $ctd/containerd-shim-runc-v2
	tool ctr "$CONTAINERD_VERSION" $ctd/ctr
	variant=static cgo=1 tool runc "$RUNC_VERSION" github.com/opencontainers/runc \
		-tags=seccomp,netgo,osusergo '-ldflags=-s -w -extldflags "-static"'
}

lab() {
	runtime
	packages busybox-static=/bin/busybox mmdebstrap=mmdebstrap curl=curl dnsutils=dig netcat-openbsd=nc util-linux=nsenter \
		iputils-ping=ping procps=ps openssl=openssl
	tool registry "$REGISTRY_VERSION" github.com/distribution/distribution/v3/cmd/registry
	variant=static cgo=0 tool nats "$NATSCLI_VERSION" github.com/nats-io/natscli/nats
	dockercli
	logspout
}

# logspout has no go.mod: the module that asks for it says what it is built with.
logspout() {
	local out=$cache/logspout-$LOGSPOUT_VERSION tmp module=github.com/gliderlabs/logspout
	if [ ! -x "$out" ]; then
		exec 9>"$cache/.lock"
		flock 9
		if [ ! -x "$out" ]; then
			say "building logspout $LOGSPOUT_VERSION (once; kept in $cache)"
			tmp=$(mktemp -d "$cache/.build-XXXXXX")
			(
				cd "$tmp"
				printf 'module logspout.build\n\ngo 1.22\n\nrequire (\n\t%s %s+incompatible\n\tgithub.com/fsouza/go-dockerclient %s\n\tgithub.com/gorilla/mux v1.8.0\n\tgolang.org/x/net v0.17.0\n)\n' \
					"$module" "$LOGSPOUT_VERSION" "$DOCKERCLIENT_VERSION" >go.mod
				GOFLAGS=-buildvcs=false GOWORK=off CGO_ENABLED=0 go build -mod=mod -trimpath -ldflags '-s -w' -o "$tmp/logspout" "$module"
			) || { rm -rf "$tmp"; die "building logspout $LOGSPOUT_VERSION did not work: see above"; }
			mv "$tmp/logspout" "$out"
			rm -rf "$tmp"
		fi
		exec 9>&-
	fi
	ln -sfn "$out" "$bin/logspout"
}

# The docker command keeps its go.mod under another name, so `go install` does not build it.
dockercli() {
	local out=$cache/dockercli-$DOCKERCLI_VERSION tmp dir module=github.com/docker/cli
	if [ ! -x "$out" ]; then
		exec 9>"$cache/.lock"
		flock 9
		if [ ! -x "$out" ]; then
			say "building the docker command $DOCKERCLI_VERSION (once; kept in $cache)"
			tmp=$(mktemp -d "$cache/.build-XXXXXX")
			(
				cd "$tmp"
				dir=$(GOFLAGS='' GOWORK=off go mod download -json "$module@$DOCKERCLI_VERSION+incompatible" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
				cp -r "$dir" src && chmod -R u+w src && cd src
				rm -rf vendor && mv vendor.mod go.mod && mv vendor.sum go.sum
				GOFLAGS=-buildvcs=false GOWORK=off CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w -X $module/cli/version.Version=${DOCKERCLI_VERSION#v}" -o "$tmp/docker" ./cmd/docker
			) || { rm -rf "$tmp"; die "building the docker command $DOCKERCLI_VERSION did not work: see above"; }
			mv "$tmp/docker" "$out"
			rm -rf "$tmp"
		fi
		exec 9>&-
	fi
	ln -sfn "$out" "$bin/docker"
}

# Debian's packages are unpacked, not installed: installing them would start an engine here. Compose cannot be had by
# `go install`, which refuses modules that exclude versions.
engine() {
	lab
	packages libdevmapper1.02.1='/usr/lib/*/libdevmapper.so.1.02.1' iptables=iptables
	local docker=$cache/docker-$DOCKER_VERSION compose=$cache/docker-compose-$COMPOSE_VERSION tmp
	exec 9>"$cache/.lock"
	flock 9
	if [ ! -x "$docker/usr/sbin/dockerd" ]; then
		say "fetching Debian's Docker Engine (once; kept in $cache)"
		tmp=$(mktemp -d "$cache/.build-XXXXXX")
		(
			cd "$tmp"
			get() { apt-get download -qq docker.io containerd runc tini >/dev/null 2>&1; }
			get || { apt-get update -qq && get; } || die "apt-get could not download docker.io, containerd, runc and tini"
			for deb in *.deb; do dpkg -x "$deb" root; done
		) || { rm -rf "$tmp"; exit 1; }
		"$tmp/root/usr/sbin/dockerd" --version | grep -q " $DOCKER_VERSION" || say "not $DOCKER_VERSION: $("$tmp/root/usr/sbin/dockerd" --version)"
		rm -rf "$docker"
		mv "$tmp/root" "$docker"
		rm -rf "$tmp"
	fi
	if [ ! -x "$compose" ]; then
		say "building docker-compose $COMPOSE_VERSION (once; kept in $cache)"
		local module=github.com/docker/compose/v2 dir
		tmp=$(mktemp -d "$cache/.build-XXXXXX")
		dir=$(cd "$tmp" && GOFLAGS='' GOWORK=off go mod download -json "$module@$COMPOSE_VERSION" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
		(cd "$dir" && GOFLAGS=-buildvcs=false GOWORK=off CGO_ENABLED=0 go build -mod=readonly -trimpath \
			-ldflags "-s -w -X $module/internal.Version=$COMPOSE_VERSION" -o "$tmp/docker-compose" ./cmd) ||
			{ rm -rf "$tmp"; die "building docker-compose $COMPOSE_VERSION did not work: see above"; }
		mv "$tmp/docker-compose" "$compose"
		rm -rf "$tmp"
	fi
	exec 9>&-
	ln -sfn "$docker" "$bin/engine"
	ln -sfn "$compose" "$bin/docker-compose"
}

proto() {
	tool buf "$BUF_VERSION" github.com/bufbuild/buf/cmd/buf
	tool protoc-gen-go "$PROTOC_GEN_GO_VERSION" google.golang.org/protobuf/cmd/protoc-gen-go
}

lint() { tool staticcheck "$STATICCHECK_VERSION" honnef.co/go/tools/cmd/staticcheck; }

[ $# -gt 0 ] || set -- runtime
for set in "$@"; do
	case $set in
	runtime | lab | engine | proto | lint) $set ;;
	*) die "no set of tools named $set: runtime, lab, engine, proto, lint" ;;
	esac
done

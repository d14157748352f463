#!/usr/bin/env bash
# make up and make down: a one-node cluster on this machine, with a demo service from an image the project builds itself.
#
# The node listens on 127.0.0.1 only and its containers live on a bridge of their own; the machine's real interfaces get no
# address and no port. What `up` changes is written to $mark, and `down` undoes exactly that.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/bin
export PATH=$bin:$bin/tools:$PATH:/usr/sbin:/sbin
data=/var/lib/skep run=/run/skep mark=/var/lib/skep-demo
addr=127.0.0.1

die() { echo "make ${verb:-up}: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "containers need root: run it with sudo"

# settings that a node turns on; remembered before, put back after
sysctls="net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.default.rp_filter net.ipv4.conf.all.route_localnet"

up() {
	if [ -e $mark ]; then
		skep node ls >/dev/null 2>&1 || die "an earlier make up did not finish: run make down first"
	else
		[ ! -e $data/node.json ] || die "this machine is a node of a cluster already (see skep info); the demo would get in its way"
		mkdir -p $mark
		for s in $sysctls; do echo "$s=$(sysctl -n "$s" 2>/dev/null)"; done >$mark/sysctls
		[ -e $data ] || touch $mark/own-data
		echo "Starting a one-node cluster on $addr"
		skep init --advertise-addr $addr --listen-addr $addr:2377 >$mark/init || die "see above; make down cleans up"
	fi
	if ! skep service inspect demo >/dev/null 2>&1; then
		echo "Building the demo image and loading it into the node: no registry takes part"
		skep-lab image whoami:v1 $mark/whoami.tar
		skep image load -i $mark/whoami.tar
		rm -f $mark/whoami.tar
		skep service create --name demo --replicas 2 --no-resolve-image whoami:v1
	fi
	echo
	skep service ps demo
	cat <<-EOT

		A cluster of one node is up. Try next:
		  bin/skep service scale demo=5            more of it
		  bin/skep service logs demo               what the tasks say
		  bin/skep exec demo.1 wget -qO- localhost run a command in one
		  bin/skep service explain demo            why its tasks run where they run
		  bin/skep top                             all of it, live
		  make lab                                 a cluster of three hosts on this machine
		  make down                                undo this
	EOT
}

# ours lists processes of this machine (not of a lab's hosts, which have pid namespaces of their own) whose command line names our files.
ours() {
	local self p
	self=$(readlink /proc/self/ns/pid)
	for p in /proc/[0-9]*; do
		[ "$(readlink "$p/ns/pid" 2>/dev/null)" = "$self" ] || continue
		tr '\0' ' ' <"$p/cmdline" 2>/dev/null | grep -qE "$1" && echo "${p#/proc/}"
	done
	return 0
}

reap() { # pattern: kill and wait
	local pids
	for _ in $(seq 100); do
		pids=$(ours "$1")
		[ -n "$pids" ] || return 0
		# shellcheck disable=SC2086
		kill -9 $pids 2>/dev/null || true
		sleep 0.1
	done
	die "processes $pids do not end"
}

down() {
	[ -e $mark ] || { echo "nothing to undo"; return; }
	timeout 60 skep leave --force >/dev/null 2>&1 || true # what it leaves, the rest takes
	reap "(^|/)skep node run .*$data"
	reap "containerd-shim-runc-v2 .*-address $run/containerd.sock"
	reap "(^|/)containerd .*$data/containerd"
	# containers whose shim was killed: by their cgroups
	find /sys/fs/cgroup/skep /sys/fs/cgroup/*/skep -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | xargs -r kill -9 2>/dev/null || true
	awk -v d=$data -v r=$run 'index($5, d"/") == 1 || index($5, r"/") == 1 {print $5}' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
	for l in $(ip -o link show | awk -F': ' '/ skep0| skin0/ {sub("@.*", "", $2); print $2}'); do ip link del "$l"; done
	for t in $(nft list tables 2>/dev/null | awk '$3 ~ /^skep/ {print $2":"$3}'); do nft delete table "${t%%:*}" "${t#*:}"; done
	for table in filter nat mangle; do # our chains carry our name; the rules that jump to them go first
		iptables -t $table -S 2>/dev/null | sed -n 's/^-A \(.* -j SKEP-.*\)/-D \1/p; ' | { grep -v '^-D SKEP-' || true; } | while read -r rule; do
			# shellcheck disable=SC2086
			iptables -t $table $rule
		done
		for c in $(iptables -t $table -S 2>/dev/null | sed -n 's/^-N \(SKEP-.*\)/\1/p'); do
			iptables -t $table -F "$c" && iptables -t $table -X "$c"
		done
	done
	[ ! -e $mark/sysctls ] || while IFS='=' read -r k v; do [ -z "$v" ] || sysctl -qw "$k=$v" || true; done <$mark/sysctls
	for _ in $(seq 50); do
		find /sys/fs/cgroup/skep /sys/fs/cgroup/*/skep -type d 2>/dev/null | sort -r | xargs -r rmdir 2>/dev/null && break
		sleep 0.1
	done
	rm -rf $run
	[ ! -e $mark/own-data ] || rm -rf $data
	rm -rf $mark
	echo "Undone: no process, container, network or file of the demo is left."
}

verb=${1:-}
case $verb in
up | down) $verb ;;
*) die "usage: demo.sh up|down" ;;
esac

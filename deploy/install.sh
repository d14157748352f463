#!/usr/bin/env bash
# Installs what `make build tools` made: skep, its containerd and runc, the systemd unit and shell completion.
#
#   deploy/install.sh [--prefix /usr/local] [--destdir DIR] [--suite] [--uninstall]
#
# --suite installs the services' own programs and skep@.service too (docs/operations.md, "One process or many").
# --destdir stages the files for a package and leaves the running system alone.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
prefix=/usr/local destdir='' uninstall='' suite=''
usage='usage: install.sh [--prefix P] [--destdir D] [--suite] [--uninstall]'
programs='skep-bus skep-state skep-scheduler skep-health skep-vault skep-mesh-controller skep-mesh skep-agent skep-engine'
while [ $# -gt 0 ]; do
	case $1 in
	--prefix | --destdir)
		[ -n "${2-}" ] || { echo "install: $1 needs a folder; $usage" >&2 && exit 2; }
		[ "$1" = --prefix ] && prefix=$2 || destdir=$2
		shift 2
		;;
	--suite) suite=1 && shift ;;
	--uninstall) uninstall=1 && shift ;;
	*) echo "install: unknown option $1; $usage" >&2 && exit 2 ;;
	esac
done

bin=$destdir$prefix/bin tools=$destdir/usr/lib/skep/bin unit=$destdir/etc/systemd/system/skep.service template=$destdir/etc/systemd/system/skep@.service
bash=$destdir$prefix/share/bash-completion/completions/skep
zsh=$destdir$prefix/share/zsh/site-functions/_skep
fish=$destdir$prefix/share/fish/vendor_completions.d/skep.fish
systemd() { [ -z "$destdir" ] && [ -d /run/systemd/system ]; }

if [ -n "$uninstall" ]; then
	! systemd || systemctl disable --now skep.service 2>/dev/null || true
	! systemd || systemctl disable --now 'skep@*.service' 2>/dev/null || true
	rm -f "$bin/skep" "$unit" "$template" "$bash" "$zsh" "$fish"
	for p in $programs; do rm -f "$bin/$p"; done
	rm -rf "$tools"
	! systemd || systemctl daemon-reload
	echo "removed skep; its data is still in /var/lib/skep"
	exit
fi

[ -x "$root/bin/skep" ] || { echo "install: no bin/skep: run make build first" >&2 && exit 1; }
install -D -m 0755 "$root/bin/skep" "$bin/skep"
# the agent looks for its containerd in /usr/lib/skep/bin, whatever the prefix: it must never meet another one's shim
install -D -m 0755 "$root/bin/skep-init" "$tools/skep-init"
for t in containerd containerd-shim-runc-v2 ctr runc; do
	[ -x "$root/bin/tools/$t" ] || { echo "install: no bin/tools/$t: run make tools first" >&2 && exit 1; }
	install -D -m 0755 "$root/bin/tools/$t" "$tools/$t"
done
install -d "$(dirname "$unit")" "$(dirname "$bash")" "$(dirname "$zsh")" "$(dirname "$fish")"
sed "s|@PREFIX@|$prefix|g" "$root/deploy/skep.service" >"$unit"
if [ -n "$suite" ]; then
	for p in $programs; do
		[ -x "$root/bin/$p" ] || { echo "install: no bin/$p: run make build first" >&2 && exit 1; }
		install -D -m 0755 "$root/bin/$p" "$bin/$p"
	done
	sed "s|@PREFIX@|$prefix|g" "$root/deploy/skep@.service" >"$template"
fi
"$root/bin/skep" completion bash >"$bash"
"$root/bin/skep" completion zsh >"$zsh"
"$root/bin/skep" completion fish >"$fish"
! systemd || systemctl daemon-reload
echo "installed skep in $bin; begin with: skep init"

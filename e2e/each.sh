#!/usr/bin/env bash
# Checks that every commit after the one given builds, with its tests: e2e/each.sh COMMIT
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 1 ] && [ -n "$1" ] || { echo "each: name the commit to begin after: make each SINCE=main" >&2; exit 2; }

tree=$(mktemp -d)
trap 'git worktree remove --force "$tree"' EXIT
git worktree add -q --detach "$tree" "$1"

for c in $(git rev-list --reverse "$1..HEAD"); do
	git -C "$tree" checkout -q "$c"
	git log -1 --format='each: %h %s' "$c"
	for m in $(sed -n 's,^[[:space:]]*\./,,p' "$tree/go.work"); do
		(cd "$tree/$m" && go vet ./...) || { echo "each: $c does not build" >&2; exit 1; }
	done
done

#!/usr/bin/env bash
# Feeds every fuzz target of some modules, one after the other: fuzz.sh TIME REGEXP MODULE...
#
# TIME is how long each is fed (30s, or 10000x for so many inputs), REGEXP picks targets by "directory name". It finds
# the targets itself: func FuzzX in a _test.go file. All are fed even when one fails; what a target failed on lies in
# testdata/fuzz beside it and is an ordinary test from then on. An input that hangs is told after 10 s, so a TIME below
# that does not find it.
set -euo pipefail
time=$1 pick=$2
shift 2
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# ended: the time was up while an input was tried, which Go before 1.27 takes for a failure of the target
# (golang/go#75804). An input that hangs or fails is told otherwise.
ended() {
	grep -q '^    context deadline exceeded$' "$log" && ! grep -qE 'Failing input written|hung or terminated|panic:' "$log"
}

fed=0 failed=()
while read -r dir name; do
	[[ "$dir $name" =~ $pick ]] || continue
	fed=$((fed + 1))
	echo "== $dir $name"
	if ! go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10s "./$dir" </dev/null >"$log" 2>&1 && ! ended; then
		cat "$log"
		failed+=("$dir $name")
	fi
done < <(grep -rnoE --include='*_test.go' '^func Fuzz[^a-z(][A-Za-z0-9_]*' "$@" | sed -E 's,^(.*)/[^/]*:[0-9]+:func ,\1 ,' | sort)
if ((fed == 0)); then
	echo "no fuzz target matches $pick" >&2
	exit 1
fi
if ((${#failed[@]})); then
	printf 'failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "$fed fuzz targets, $time each: all passed"

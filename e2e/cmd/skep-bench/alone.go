package main

import (
	"fmt"
	"strconv"
	"time"
)

// aloneScript starts containers by containerd and nothing else, four at a time as the agent does on two cores, in a
// namespace the agent does not look into, and prints the milliseconds that took. ctr is a process each: some 20 ms of
// every start are its own.
const aloneScript = `set -e
c="ctr -a /run/skep/containerd.sock"
image=$($c -n skep images ls -q | grep busybox | head -n 1)
$c -n skep images export /run/alone.tar "$image" >/dev/null
$c -n alone images import /run/alone.tar >/dev/null
began=$(date +%%s%%3N)
seq %[1]d | xargs -P 4 -I{} $c -n alone run -d --null-io "$image" alone{} sleep 100000 2>/dev/null
ended=$(date +%%s%%3N)
for i in $(seq %[1]d); do
	$c -n alone tasks kill -s SIGKILL alone$i
	until $c -n alone tasks delete alone$i >/dev/null 2>&1; do sleep 0.05; done
	$c -n alone containers delete alone$i
done
$c -n alone images delete --sync "$image" >/dev/null
$c namespaces remove alone >/dev/null
rm /run/alone.tar
echo $((ended - began))`

// alone measures what the machine needs for n containers without skep, for the figures beside it: the same machine
// starts them four times slower on one day than on another.
func (r *rig) alone(n int) error {
	d, err := r.median(func() (time.Duration, error) {
		out, err := r.on("w1", "sh", "-c", fmt.Sprintf(aloneScript, n))
		if err != nil {
			return 0, err
		}
		ms, err := strconv.Atoi(out)
		return time.Duration(ms) * time.Millisecond, err
	})
	if err == nil {
		r.note(row{what: fmt.Sprintf("%d containers by containerd alone (ctr, 4 at a time)", n), bar: "-", measured: short(d), swarm: "-"})
	}
	return err
}

package lab

// TaskTraces is a script for a host that lists what tasks left there: containers, namespaces, mounts, devices, cgroups, folders.
const TaskTraces = `ctr -a /run/skep/containerd.sock -n skep containers ls -q | sed 's/^/container /'
ctr -a /run/skep/containerd.sock -n skep snapshots ls 2>/dev/null | awk '$3 == "Active" {print "snapshot", $1}'
ls /run/skep/netns 2>/dev/null | sed 's/^/netns /'
awk '$5 ~ "^/run/skep/(netns|containerd|subpaths)/.*/" || $5 ~ "/agent/tasks/" {print "mount", $5}' /proc/self/mountinfo
ip -o link show type veth | grep -v ' eth0' | awk '{print "device", $2}'
ls /var/lib/skep/agent/tasks 2>/dev/null | sed 's/^/folder /'
find /sys/fs/cgroup/pids/skep /sys/fs/cgroup/skep -mindepth 2 -type d 2>/dev/null | sed 's/^/cgroup /'
pgrep -x containerd-shim | sed 's/^/shim /'
true`

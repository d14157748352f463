// Package lab makes many hosts on one machine: each a network, mount, pid, uts, ipc and cgroup namespace with a disk of its own, joined by
// a bridge in a namespace that has no link to the machine's network. Real containerd, real images, a real registry.
//
// It owns everything named skep-<lab>-… (network namespaces), /run/skep-lab/<lab> (what the lab is), /var/lib/skep-lab/<lab> (the hosts' disks)
// and the cgroups skep-lab/<lab>. It refuses to touch anything else: no address, route or rule outside its namespaces.
//
// A host is the pid namespace of one small process. Killing that process is a power-off: the kernel ends every process of the
// host at once, its mounts and network devices vanish with their namespaces, the disk stays. So a lab that crashes, or whose
// test dies, leaves at most names and directories; Down removes them, and may be run again at any time.
package lab

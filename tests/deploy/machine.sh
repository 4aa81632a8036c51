#!/usr/bin/env bash
# A systemd as pid 1, in namespaces of its own, on this machine's files: what is changed there is
# kept in memory, and gone with it. Started by machine.py.
#
#     machine.sh NAME WORK [SOURCE:TARGET...]
#
# NAME: of its cgroups. WORK: an empty folder. It sees SOURCE of this machine at TARGET, and what
# this machine's /proc has at /node/proc: BPF tells processes by the node's pids.
set -euo pipefail

outside() {
    local at
    # A group in every hierarchy, version 1 or 2, which is its root
    while read -r at; do
        mkdir -p "$at/$1"
        if [[ -e $at/cpuset.effective_cpus ]]; then # version 1: nothing may run before they are set
            cat "$at/cpuset.effective_cpus" >"$at/$1/cpuset.cpus"
            cat "$at/cpuset.effective_mems" >"$at/$1/cpuset.mems"
        fi
        echo $$ >"$at/$1/cgroup.procs"
    done < <(hierarchies)
    exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup "$0" --inside "$@"
}

hierarchies() {
    awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts
}

inside() {
    local name=$1 work=$2 root=$2/root at pair
    local -a groups
    shift 2
    mapfile -t groups < <(hierarchies)
    mount --make-rprivate /
    mount -t tmpfs -o mode=0755 tmpfs "$work"
    mkdir "$work"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"

    mkdir -p "$root/node/proc"
    mount --rbind /proc "$root/node/proc"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    # Read-only, for what isn't its own: kernel variables, the devices' events
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    [[ ${groups[0]} == /sys/fs/cgroup ]] || mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    for at in "${groups[@]}"; do
        mkdir -p "$root$at"
        mount --bind "$at/$name" "$root$at"
    done
    mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
    for at in null zero full random urandom tty; do
        touch "$root/dev/$at"
        mount --bind "/dev/$at" "$root/dev/$at"
    done
    mkdir "$root"/dev/{pts,shm}
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for at in dev/shm run tmp; do
        mount -t tmpfs tmpfs "$root/$at"
    done
    chmod 1777 "$root/tmp" "$root/dev/shm"
    for pair in "$@"; do
        mkdir -p "$root${pair#*:}"
        mount --bind "${pair%%:*}" "$root${pair#*:}"
    done
    # What this machine would start is not ours to start, and its own gpubpf isn't the one to try.
    rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/gpubpf.service \
        "$root"/{etc,opt,var/lib}/gpubpf
    # In an image of a container this keeps packages from starting their services.
    rm -f "$root/usr/sbin/policy-rc.d"
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    exec env -i container=gpubpf-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=multi-user.target
}

if [[ $1 == --inside ]]; then
    inside "${@:2}"
else
    outside "$@"
fi

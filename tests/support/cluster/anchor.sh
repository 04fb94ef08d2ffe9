#!/usr/bin/env bash
# The first process of a pretend machine: makes its own host name, files, shared memory and munge, then reaps
# what is left of others. Killing it ends every process of the machine.
# Arguments: its name, the cluster's folder, then for each cover: folder, mode, number of kept folders, these.
set -euo pipefail
name=$1
base=$2
shift 2
own=$base/hosts/$name

hostname "$name"
ip link set lo up

while [ "$#" -gt 0 ]; do
  folder=$1
  mode=$2
  kept=("${@:4:$3}")
  shift $((3 + $3))
  mount -t tmpfs -o "mode=$mode" exatrkx-cluster "$own/cover"
  for path in "${kept[@]}"; do
    mkdir -p "$own/cover/${path#"$folder"/}"
    mount --bind "$path" "$own/cover/${path#"$folder"/}"
  done
  mount --move "$own/cover" "$folder"
done

for file in passwd group hosts slurm; do
  mount --bind "$base/etc/$file" "/etc/$file"
done
mount -t tmpfs -o mode=1777 exatrkx-cluster /dev/shm
mount -t tmpfs -o mode=755 exatrkx-cluster /run
mkdir -m 755 /run/munge /run/mysqld
mkdir -m 1777 /run/lock
for controller in /sys/fs/cgroup/freezer /sys/fs/cgroup/memory; do
  [ -e "$controller/release_agent" ] || continue
  mkdir "$controller/${base##*/}-$name"
  mount --bind "$controller/${base##*/}-$name" "$controller"
done
# Containers' runtimes refuse the hybrid layout.
umount /sys/fs/cgroup/unified 2>/dev/null || true

munged --force --key-file="$base/etc/munge.key" --log-file="$own/munged.log" --seed-file="$own/munged.seed" \
  --pid-file=/run/munge/pid --socket=/run/munge/munge.socket.2
touch "$own/ready"
while :; do
  sleep 1000 &
  wait || true
done

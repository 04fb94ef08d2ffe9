#!/usr/bin/env bash
# Holds the mounts that a container engine needs and this machine may lack, in a mount namespace of its own, for
# as long as it runs: nothing of them is seen outside, and all of them go with the last process inside.
# Arguments: the site's folder, the unprivileged user's name and id.
set -euo pipefail
folder=$1
user=$2
uid=$3

mount --make-rprivate /
# crun refuses the hybrid layout of cgroups.
umount /sys/fs/cgroup/unified 2>/dev/null || true
# An unprivileged user may open these on a site's nodes.
mkdir -p "$folder/dev"
mount -t tmpfs -o mode=755 exatrkx-site "$folder/dev"
for device in fuse:10:229 net/tun:10:200; do
  IFS=: read -r name major minor <<<"$device"
  node=$folder/dev/${name##*/}
  mknod -m 666 "$node" c "$major" "$minor"
  mkdir -p "/dev/${name%/*}" 2>/dev/null || true
  [ -e "/dev/$name" ] && mount --bind "$node" "/dev/$name"
done
cp /etc/passwd /etc/group "$folder/etc/"
echo "$user:x:$uid:$uid::$folder/home:/bin/bash" >>"$folder/etc/passwd"
echo "$user:x:$uid:" >>"$folder/etc/group"
echo "$user:300000:65536" >"$folder/etc/subuid"
for file in passwd group subuid; do
  mount --bind "$folder/etc/$file" "/etc/$file"
done
[ ! -e /etc/subgid ] || mount --bind "$folder/etc/subuid" /etc/subgid
touch "$folder/ready"
while :; do
  sleep 1000 &
  wait "$!"
done

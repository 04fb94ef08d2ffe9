#!/usr/bin/env bash
# The srun of the embedded scheduler: runs a command once for each task of each node, forwards signals, and waits for
# all tasks. A node is a loopback address of this machine, which is both its name and its address.
set -uo pipefail

tasks_per_node=1
while [[ ${1:-} == --* ]]; do
  case $1 in
    --ntasks-per-node=*) tasks_per_node=${1#*=} ;;
    --nodes=* | --no-kill | --kill-on-bad-exit=* | --cpus-per-task=* | --hint=* | --gpu-bind=*) ;;
    *)
      echo "srun: the embedded scheduler has no option $1" >&2
      exit 2
      ;;
  esac
  shift
done

IFS=, read -ra nodes <<<"$SLURM_JOB_NODELIST"
pids=()
stop=
trap 'stop=TERM; kill -TERM "${pids[@]}" 2>/dev/null' TERM
trap 'stop=USR1; kill -USR1 "${pids[@]}" 2>/dev/null' USR1
trap 'stop=USR2; kill -USR2 "${pids[@]}" 2>/dev/null' USR2
for i in "${!nodes[@]}"; do
  for ((place = 0; place < tasks_per_node; place++)); do
    SLURMD_NODENAME=${nodes[i]} SLURM_NODEID=$i SLURM_LOCALID=$place \
      SLURM_PROCID=$((i * tasks_per_node + place)) "$@" &
    pids+=($!)
  done
done
# A signal that came before all tasks had started reached only some of them: send it again.
[ -z "$stop" ] || kill "-$stop" "${pids[@]}" 2>/dev/null

result=0
for pid in "${pids[@]}"; do
  status=0
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do
    status=0
    wait "$pid" || status=$?
  done
  [ "$status" -gt "$result" ] && result=$status
done
exit "$result"

#!/usr/bin/env bash
# What slurmd does for a batch script, for the embedded scheduler: runs it, hands signals on to it, and keeps
# its exit status in a file.
set -uo pipefail
umask 077
script=$1
status_file=$2

stop=
trap 'stop=TERM; [ -z "${job:-}" ] || kill -TERM "$job" 2>/dev/null' TERM
trap 'stop=USR1; [ -z "${job:-}" ] || kill -USR1 "$job" 2>/dev/null' USR1
bash "$script" &
job=$!
[ -z "$stop" ] || kill "-$stop" "$job"
status=0
wait "$job" || status=$?
while kill -0 "$job" 2>/dev/null; do
  status=0
  wait "$job" || status=$?
done
echo "$status" >"$status_file.new" && mv -f "$status_file.new" "$status_file"

#!/usr/bin/env bash
# Replaces slurmd for the embedded scheduler: runs a batch script, forwards signals to it, and writes its exit status
# to a file. Arguments: the script, the status file.
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

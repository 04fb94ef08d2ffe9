#!/usr/bin/env bash
# Replaces slurmd for the embedded scheduler: runs a batch script, forwards signals to it, and writes its exit status
# to a file. Arguments: the script, the status file, and optionally a file for the session and its start.
set -uo pipefail
umask 077
script=$1
status_file=$2
session_file=${3:-}
# Field 22 of /proc/PID/stat is the start of a process; the name in field 2 is "bash".
[ -z "$session_file" ] || awk '{print $1, $22}' "/proc/$$/stat" >"$session_file"

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

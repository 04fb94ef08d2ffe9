#!/usr/bin/env bash
# Runs a farm's script at once in the allocation that this shell is in. Its words and its exit status go where those
# of a batch job go. Arguments: the script, the run root.
set -uo pipefail
umask 077
script=$1
run_root=$2
run_dir=$run_root/$SLURM_JOB_ID

mkdir -p "$run_dir" || exit 1
exec >>"$run_root/job-$SLURM_JOB_ID.log" 2>&1
# The servers' script need not mind what the allocation says to a container's engine.
export EXATRKX_FOREGROUND=1
# The allocation's own idea of tasks; the script says to srun what it needs.
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_TASKS_PER_NODE
bash "${BASH_SOURCE[0]%/*}/embedded-job.sh" "$script" "$run_dir/exit-status"
# salloc ends the allocation with this.
read -r status <"$run_dir/exit-status" || status=1
exit "$status"

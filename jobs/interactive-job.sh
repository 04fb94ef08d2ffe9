#!/usr/bin/env bash
# Runs a farm's script in the allocation of this shell. Output and exit status go to the same files as for a batch job.
# Arguments: the script, the run root.
set -uo pipefail
umask 077
script=$1
run_root=$2
run_dir=$run_root/$SLURM_JOB_ID

mkdir -p "$run_dir" || exit 1
exec >>"$run_root/job-$SLURM_JOB_ID.log" 2>&1
# Tells server.sh to unset the container image of the allocation.
export EXATRKX_FOREGROUND=1
# Drop the task counts of the allocation: the script passes its own to srun.
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_TASKS_PER_NODE
bash "${BASH_SOURCE[0]%/*}/embedded-job.sh" "$script" "$run_dir/exit-status"
# salloc ends the allocation with this exit status.
read -r status <"$run_dir/exit-status" || status=1
exit "$status"

# Sourced by the fakes: reply NAME DEFAULT ARGV... logs the call and answers; see README.md.
reply() {
  local name=$1 default=$2
  shift 2
  {
    printf '%s\0' "$(basename "$0")" "$@"
    echo
  } >>"$FAKE_SLURM/calls"
  while [ -e "$FAKE_SLURM/$name.slow" ]; do
    sleep 0.05
  done
  if [ -e "$FAKE_SLURM/$name.err" ]; then
    cat "$FAKE_SLURM/$name.err" >&2
    exit 1
  fi
  if [ -e "$FAKE_SLURM/$name.out" ]; then
    cat "$FAKE_SLURM/$name.out"
  elif [ -n "$default" ]; then
    echo "$default"
  fi
}

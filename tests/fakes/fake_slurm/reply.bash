# Sourced by the fakes: reply DEFAULT ARGV... logs the call and answers; see README.md.
reply() {
  local name default
  name=$(basename "$0")
  default=$1
  shift
  {
    printf '%s\0' "$name" "$@"
    echo
  } >>"$FAKE_SLURM/calls"
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

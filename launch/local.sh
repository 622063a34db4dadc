#!/usr/bin/env bash
# Trains with several processes on this machine, which talk over loopback as the hosts of a cluster would.
#
#   launch/local.sh --processes 2 --devices 4 --recipe configs/quickstart.py --workdir runs/two
#   launch/local.sh --processes 2 --platform cuda --recipe FILE --workdir DIR -- --config.steps=10
#
# Each line of output carries the number of its process. Ctrl-C or SIGTERM reaches every process, which finishes its
# step, saves and ends with 75; a second one ends them at once. If a process dies, the others are stopped. The exit code
# is the first that is not 0. Started again with the same workdir, the run continues; to have that happen by itself:
# launch/restart.sh -- launch/local.sh ...

# --- settings
PROCESSES=2                     # processes
DEVICES=1                       # devices of each process
PLATFORM=cpu                    # cpu: devices that XLA makes up; cuda: real ones, DEVICES for each process
RECIPE=configs/quickstart.py    # the recipe
WORKDIR=                        # where the run is kept
PORT=                           # of the coordinator; empty: a free one
STOP_SECONDS=600                # how long a process may take to save before it is killed
PYTHON=python                   # the interpreter that has jaxvlm
# --- end of settings

set -u
PAGE=${BASH_SOURCE[0]}
VERBS=
# shellcheck source=launch/common.sh
. "$(dirname "$PAGE")/common.sh"

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break # nobody answers there
  done
  echo "$port"
}

# The environment of process $1, in ENVIRONMENT.
environment_of() {
  local first=$(($1 * DEVICES)) devices
  ENVIRONMENT=(JAXVLM_COORDINATOR="127.0.0.1:$PORT" JAXVLM_NUM_PROCESSES="$PROCESSES" JAXVLM_PROCESS_ID="$1")
  ENVIRONMENT+=(PYTHONUNBUFFERED=1)
  if [ "$PLATFORM" = cuda ]; then
    devices=$(seq -s , "$first" $((first + DEVICES - 1)))
    ENVIRONMENT+=(JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES="${devices%,}") # the seq of macOS ends with a comma
  else
    ENVIRONMENT+=(JAX_PLATFORMS=cpu)
    ENVIRONMENT+=(XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES")
  fi
}

prefix() {
  local line
  trap '' INT TERM # it ends with the last line of its process
  while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}

signal_all() {
  local pid
  for pid in ${running[@]+"${running[@]}"}; do kill "-$1" "$pid" 2>/dev/null; done
}

begin_stop() { # $1: why
  [ -z "$stop_at" ] || return 0
  say "$1; stopping the processes, which may take up to $STOP_SECONDS seconds to save"
  stop_at=$((SECONDS + STOP_SECONDS))
  signal_all TERM
}

# shellcheck disable=SC2329  # a trap calls it
on_signal() {
  if [ -z "$stop_at" ]; then
    begin_stop "told to stop"
  else
    say "told to stop again; killing the processes"
    signal_all KILL
  fi
}

# Takes the processes that have ended out of `running`; the first exit code that is not 0 stays in `code`.
collect() {
  local place ended
  for place in "${!running[@]}"; do
    kill -0 "${running[place]}" 2>/dev/null && continue
    wait "${running[place]}"
    ended=$?
    unset "running[place]"
    [ "$ended" -ne 0 ] || continue
    [ "$code" -ne 0 ] || code=$ended
    begin_stop "process $place ended with $ended"
  done
}

parse_flags "$@"
need RECIPE WORKDIR PYTHON
need_numbers PROCESSES DEVICES STOP_SECONDS
[ -z "$PORT" ] || need_numbers PORT
[ "$PROCESSES" -gt 0 ] && [ "$DEVICES" -gt 0 ] || mistake "at least one process and one device"
case $PLATFORM in
  cpu | cuda) ;;
  *) mistake "--platform is cpu or cuda, not $PLATFORM (a TPU VM runs one process: start jaxvlm.train itself)" ;;
esac
need_tools "$PYTHON"
[ -n "$PORT" ] || PORT=$(free_port)
# shellcheck disable=SC2119  # no flags of the page's own: the environment tells each process which it is
training_command

if [ "$DRY_RUN" = yes ]; then
  for ((process = 0; process < PROCESSES; process++)); do
    environment_of "$process"
    printf '%s &\n' "$(quote env "${ENVIRONMENT[@]}" "${COMMAND[@]}")"
  done
  echo wait
  exit 0
fi

running=()
stop_at=
code=0
trap on_signal INT TERM
for ((process = 0; process < PROCESSES; process++)); do
  environment_of "$process"
  env "${ENVIRONMENT[@]}" "${COMMAND[@]}" > >(prefix "$process") 2>&1 </dev/null &
  running[process]=$!
done
while [ ${#running[@]} -gt 0 ]; do
  sleep 0.2
  collect
  if [ -n "$stop_at" ] && [ "$SECONDS" -ge "$stop_at" ]; then
    say "not stopped after $STOP_SECONDS seconds; killing the processes"
    signal_all KILL
  fi
done
exit "$code"

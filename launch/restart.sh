#!/usr/bin/env bash
# Runs a command, and again when it was preempted or crashed: the loop of `tpu_vm.sh run`.
#
#   launch/restart.sh [--restarts N] [--pause SECONDS] -- COMMAND ...
#
# Exit code 0 is done and 2 a mistake in recipe or data: both end it. After any other, 75 (told to stop, and saved)
# among them, the command is started again, at most N times (default 20) with a pause between (default 30 seconds).
# SIGTERM and SIGINT are passed on, and then nothing is started again. The exit code is that of the last try.

set -u

restarts=20
pause=30
while [ $# -gt 0 ]; do
  case $1 in
    --restarts | --pause)
      case ${2-} in
        '' | *[!0-9]*) echo "restart.sh: $1 is a number, not \"${2-}\"" >&2 && exit 2 ;;
      esac
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    --) shift && break ;;
    *) echo "restart.sh: no flag $1; --help lists them" >&2 && exit 2 ;;
  esac
done
[ $# -gt 0 ] || {
  echo "restart.sh: no command after --" >&2
  exit 2
}

say() { printf '[%s] restart.sh: %s\n' "$(date '+%F %T')" "$*" >&2; }

child=
stopping=no
interrupted=no
pass_on() {
  stopping=yes
  interrupted=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap pass_on TERM INT

# Waits for the child whatever signals arrive meanwhile; sets `code`.
wait_for_child() {
  while :; do
    interrupted=no
    wait "$child"
    code=$?
    [ "$interrupted" = yes ] || break
  done
  child=
}

starts=0
while :; do
  starts=$((starts + 1))
  "$@" &
  child=$!
  [ "$stopping" = no ] || kill -TERM "$child" 2>/dev/null # told to stop between two tries
  wait_for_child
  case $code in
    0) say "done" && exit 0 ;;
    2) say "exit code 2, a mistake in recipe or data; not started again" && exit 2 ;;
  esac
  if [ "$stopping" = yes ]; then
    say "told to stop; exit code $code"
    exit "$code"
  fi
  if [ "$starts" -gt "$restarts" ]; then
    say "exit code $code after $restarts restarts; giving up"
    exit "$code"
  fi
  say "exit code $code; restart $starts of $restarts in $pause seconds"
  for ((left = pause; left > 0; left--)); do
    [ "$stopping" = no ] || break
    sleep 1
  done
  if [ "$stopping" = yes ]; then
    say "told to stop; last exit code $code"
    exit "$code"
  fi
done

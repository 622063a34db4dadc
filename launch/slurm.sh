#!/usr/bin/env bash
# Trains under Slurm: writes or submits a batch script that starts one process for each GPU, or each node, with srun.
#
#   launch/slurm.sh submit     submits the script; what follows -- goes to the trainer
#   launch/slurm.sh write      prints the script, for sbatch by hand
#   launch/slurm.sh follow     shows a job's output as it grows
#   launch/slurm.sh stop       tells a job to save and stop, and waits for it
#
# Before its time limit the job gets SIGTERM, saves and ends with 75; then it, or a job that crashed, queues again, at
# most RESTARTS times. A mistake in recipe or data (exit code 2) ends it. Call it where the recipe and the workdir are,
# on a file system that the nodes share.

# --- settings
NAME=train                      # the job's name, after jaxvlm-
NODES=1                         # nodes
GPUS_PER_NODE=8                 # GPUs of each node, one process each; 0: one process for each node, without GPU
CPUS_PER_TASK=8                 # processor cores of each process
TIME=24:00:00                   # time limit of one start
PARTITION=                      # partition; empty: the cluster's own choice
ACCOUNT=                        # account; empty: yours
RECIPE=                         # the recipe
WORKDIR=                        # where the run is kept: a folder that all nodes see
PYTHON=.venv/bin/python         # the interpreter that has jaxvlm, on the nodes
RESTARTS=100                    # how often a job that was told to stop or crashed queues again
STOP_SECONDS=300                # how long before the time limit it is told to stop, and how long stop waits
LOGS=runs/slurm                 # folder of the outputs
JOB=                            # job of follow and stop; empty: the last that submit submitted under this name
# --- end of settings

set -u
PAGE=${BASH_SOURCE[0]}
VERBS="submit write follow stop"
# shellcheck source=launch/common.sh
. "$(dirname "$PAGE")/common.sh"

# The batch script.
script() {
  local tasks=1 command
  [ "$GPUS_PER_NODE" -eq 0 ] || tasks=$GPUS_PER_NODE
  training_command --distributed auto # the cluster tells each process which it is
  command=$(quote "${COMMAND[@]}")
  cat <<END
#!/bin/bash
#SBATCH --job-name=jaxvlm-$NAME
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=$tasks
#SBATCH --cpus-per-task=$CPUS_PER_TASK
#SBATCH --time=$TIME
#SBATCH --output=$(quote "$LOGS")/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@$STOP_SECONDS
END
  [ "$GPUS_PER_NODE" -eq 0 ] || echo "#SBATCH --gpus-per-node=$GPUS_PER_NODE" # not per task: each process picks its own
  [ -z "$PARTITION" ] || echo "#SBATCH --partition=$PARTITION"
  [ -z "$ACCOUNT" ] || echo "#SBATCH --account=$ACCOUNT"
  cat <<END

# The processes, not this script, get SIGTERM $STOP_SECONDS seconds before the time limit. One that ends early does not
# take the others with it at once: they may be saving.
export PYTHONUNBUFFERED=1
srun --kill-on-bad-exit=0 --wait=$STOP_SECONDS --cpus-per-task=$CPUS_PER_TASK --label $command
code=\$?
starts=\${SLURM_RESTART_COUNT:-0}
if [ "\$code" -eq 0 ] || [ "\$code" -eq 2 ]; then
  echo "exit code \$code; not started again"
elif [ -e $(quote "$LOGS")/"\$SLURM_JOB_NAME-\$SLURM_JOB_ID.stop" ]; then
  echo "told to stop; exit code \$code"
elif [ "\$starts" -ge $RESTARTS ]; then
  echo "exit code \$code after \$starts restarts; giving up"
else
  echo "exit code \$code; queues again (\$((starts + 1)) of $RESTARTS)"
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
END
}

submit() {
  local job
  if [ "$DRY_RUN" = yes ]; then
    run mkdir -p "$LOGS"
    printf "sbatch --parsable <<'END'\n%s\nEND\n" "$(script)"
    return
  fi
  mkdir -p "$LOGS" || fail "$LOGS cannot be made"
  job=$(script | sbatch --parsable) || fail "sbatch refused the job"
  job=${job%%;*} # sbatch may add ;CLUSTER
  echo "$job" >"$LOGS/jaxvlm-$NAME.job"
  say "job $job; launch/slurm.sh follow --name $NAME shows $LOGS/jaxvlm-$NAME-$job.out"
}

find_job() {
  [ -n "$JOB" ] || JOB=$(cat "$LOGS/jaxvlm-$NAME.job" 2>/dev/null) ||
    mistake "no job was submitted as --name $NAME with --logs $LOGS; give --job"
  need_numbers JOB
}

follow() {
  find_job
  run tail -n 100 -F "$LOGS/jaxvlm-$NAME-$JOB.out"
}

# Sets `found` to state and name of the job; empty: there is none any more. Fails with squeue's message in it.
look() {
  found=$("${TO_RUN[@]}" 2>&1) && return
  case $found in
    *"Invalid job id"*) found= ;;
    *) return 1 ;;
  esac
}

stop() {
  local found waited=0
  find_job
  TO_RUN=(squeue --noheader --jobs="$JOB" --format="%T %j")
  if [ "$DRY_RUN" = yes ]; then
    printf '%s  # only if it says jaxvlm-%s:\n' "$(quote "${TO_RUN[@]}")" "$NAME"
    run touch "$LOGS/jaxvlm-$NAME-$JOB.stop"
    run scancel --signal=TERM "$JOB"
    return
  fi
  look || fail "squeue failed, nothing was changed: $found"
  case $found in
    '') say "job $JOB is not there any more" && return ;;
    *" jaxvlm-$NAME") ;;
    *) fail "job $JOB is ${found#* }, not jaxvlm-$NAME: this page stops only what it submitted" ;;
  esac
  run touch "$LOGS/jaxvlm-$NAME-$JOB.stop" || fail "$LOGS cannot be written" # the script looks: it must not queue again
  case $found in
    RUNNING*) run scancel --signal=TERM "$JOB" || fail "scancel failed" ;;
    *) run scancel "$JOB" && return ;; # it waits: there is nothing to save
  esac
  while [ "$waited" -lt "$STOP_SECONDS" ]; do
    look || found=unknown # the controller may be busy for a while
    case $found in
      '' | COMPLETED* | FAILED* | CANCELLED* | TIMEOUT*) say "job $JOB has stopped" && return ;;
    esac
    sleep 1
    waited=$((waited + 1))
  done
  fail "job $JOB still runs after $STOP_SECONDS seconds; scancel $JOB ends it without waiting"
}

parse_flags "$@"
need NAME LOGS
need_plain_names NAME
need_numbers NODES GPUS_PER_NODE CPUS_PER_TASK RESTARTS STOP_SECONDS
case $VERB in
  submit | write) need RECIPE WORKDIR PYTHON TIME ;;
  *) [ ${#ARGS[@]} -eq 0 ] || mistake "$VERB takes nothing after --" ;;
esac
case $VERB in
  submit) need_tools sbatch ;;
  stop) need_tools squeue scancel ;;
esac
case $VERB in
  write) script ;;
  *) "$VERB" ;;
esac

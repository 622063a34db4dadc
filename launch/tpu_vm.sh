#!/usr/bin/env bash
# Trains on Google Cloud TPU VMs, which it asks for through a queued resource: one host, several, or several slices.
#
#   launch/tpu_vm.sh create     asks for the TPU and waits until it is there; what follows -- goes to gcloud
#   launch/tpu_vm.sh install    copies the last commit to every worker and installs it in an environment of its own
#   launch/tpu_vm.sh run        starts the recipe on every worker, or continues it; what follows -- goes to the trainer
#   launch/tpu_vm.sh status     shows the state of the TPU, and each worker's last line
#   launch/tpu_vm.sh follow     shows a worker's log as it grows
#   launch/tpu_vm.sh stop       tells every worker to save and stop, and waits for it
#   launch/tpu_vm.sh delete     deletes the TPU, if create made it
#
# A run is detached: it continues when you leave. It is restarted when it is preempted (exit code 75) or crashes, at most
# RESTARTS times; a mistake in recipe or data (exit code 2) ends it. A spot TPU that Google takes back is gone: delete,
# create, install and run it again, and the run continues from its workdir in the bucket.

# --- settings
NAME=jaxvlm                     # of the queued resource and, with -0, -1, ... for several slices, of its nodes
PROJECT=                        # Google Cloud project
ZONE=                           # such as us-east5-b
ACCELERATOR_TYPE=               # such as v5litepod-16, v5p-64, v6e-16; of each slice
SLICES=1                        # slices of this type
RUNTIME_VERSION=                # of the VM's software; empty: the one that goes with the accelerator
CAPACITY=spot                   # spot (cheap, taken back at any time), on-demand or reserved
IAP=no                          # yes: ssh goes through Google's proxy, for VMs without an external address
RECIPE=                         # the recipe, as in the checkout, such as configs/llava15_7b_finetune.py
WORKDIR=                        # where the run is kept: a path that every worker sees, such as a mounted bucket
RESTARTS=20                     # how often a run that was told to stop or crashed is started again
PAUSE=30                        # seconds before it is
STOP_SECONDS=600                # how long stop waits for the save
NODE=0                          # slice whose log follow shows
WORKER=0                        # worker of that slice
PYTHON_VERSION=3.12             # of the environment on the workers; uv fetches it if the VM has none
DIRTY=no                        # yes: install copies the checkout as it is, with what is not committed
POLL_SECONDS=30                 # how often create looks
OWNER=                          # label of what create makes, and of what delete may delete; empty: your user name
# --- end of settings

set -u
PAGE=${BASH_SOURCE[0]}
VERBS="create install run status follow stop delete"
# shellcheck source=launch/common.sh
. "$(dirname "$PAGE")/common.sh"

LABEL=jaxvlm-launch
HOME_THERE="\$HOME/jaxvlm" # on a worker: code, venv, and for each name NAME.pid and NAME.log

queued() { # $1: verb; the rest: arguments
  local verb=$1
  shift
  TO_RUN=(gcloud compute tpus queued-resources "$verb" "$@" --project="$PROJECT" --zone="$ZONE")
}

# Prints fields of the queued resource.
look() {
  queued describe "$NAME" --format="value($1)"
  "${TO_RUN[@]}"
}

# Ends unless the workers are there: of a slice that they cannot reach, gcloud's ssh and scp only warn, and end with 0.
need_active() {
  local state
  queued describe "$NAME" --format="value(state.state)"
  if [ "$DRY_RUN" = yes ]; then
    printf '%s  # only if it says ACTIVE:\n' "$(quote "${TO_RUN[@]}")"
    return
  fi
  state=$("${TO_RUN[@]}") || fail "gcloud cannot describe $NAME"
  [ "$state" = ACTIVE ] || fail "$NAME is ${state:-in no state} and not ACTIVE, so its workers cannot be reached"
}

# Runs a command line on workers; $1: nodes, $2: workers.
on_workers() {
  queued ssh "$NAME" --node="$1" --worker="$2"
  [ "$IAP" = no ] || TO_RUN+=(--tunnel-through-iap)
  run "${TO_RUN[@]}" --command="$3"
}

runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) mistake "no runtime version is known for $1; give --runtime-version" ;;
  esac
}

# Ends unless the label of the queued resource says that this page made it, for this owner.
check_ours() {
  local owner
  owner=$(look "tpu.nodeSpec[0].node.labels.$LABEL") || fail "gcloud cannot describe $NAME; nothing was changed"
  [ "$owner" = "$OWNER" ] || fail "$NAME carries the label $LABEL=${owner:-(none)}, not $LABEL=$OWNER: $1"
}

create() {
  local tier=() nodes found
  need ACCELERATOR_TYPE
  [ -n "$RUNTIME_VERSION" ] || RUNTIME_VERSION=$(runtime_of "$ACCELERATOR_TYPE") || exit
  case $CAPACITY in
    spot | reserved) tier=("--$CAPACITY") ;;
    on-demand) ;;
    *) mistake "--capacity is spot, on-demand or reserved, not $CAPACITY" ;;
  esac
  if [ "$SLICES" -gt 1 ]; then
    nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  else
    nodes=(--node-id="$NAME")
  fi
  queued list --format="value(name.basename())"
  if [ "$DRY_RUN" = yes ]; then
    run "${TO_RUN[@]}"
    found=
  else
    found=$("${TO_RUN[@]}") || fail "gcloud cannot list the queued resources of $ZONE"
  fi
  if printf '%s\n' "$found" | grep -Fxq -- "$NAME"; then
    check_ours "it was there before; choose another --name"
    say "$NAME was asked for already; waiting for it"
  else
    queued create "$NAME"
    run "${TO_RUN[@]}" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${nodes[@]}" \
      ${tier[@]+"${tier[@]}"} --labels="$LABEL=$OWNER" ${ARGS[@]+"${ARGS[@]}"} || fail "gcloud could not ask for $NAME"
  fi
  wait_until_active
}

wait_until_active() {
  local state last='' misses=0 began=$SECONDS told=0
  queued describe "$NAME" --format="value(state.state)"
  if [ "$DRY_RUN" = yes ]; then
    printf '%s  # every %s seconds, until it says ACTIVE\n' "$(quote "${TO_RUN[@]}")" "$POLL_SECONDS"
    return
  fi
  while :; do
    if state=$(look state.state); then
      misses=0
    else
      misses=$((misses + 1))
      [ "$misses" -lt 5 ] || fail "gcloud cannot describe $NAME; call create again to wait on"
    fi
    if [ "$state" != "$last" ] || [ $((SECONDS - told)) -ge 300 ]; then
      say "$NAME is ${state:-unknown} after $(((SECONDS - began) / 60)) minutes"
      last=$state
      told=$SECONDS
    fi
    case $state in
      ACTIVE) return ;;
      FAILED) fail "$NAME FAILED: $(look state.failedData.error.message)
what is left of it: launch/tpu_vm.sh delete --name $NAME --project $PROJECT --zone $ZONE" ;;
      SUSPENDING | SUSPENDED | DELETING) fail "$NAME is $state: it was taken back; delete it and create it again" ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

install() {
  local archive short
  choose_revision
  need_active
  short=${REVISION:0:12}
  archive=jaxvlm-$short.tar.gz
  make_folder
  run git -C "$ROOT" archive --format=tar.gz --output="$FOLDER/$archive" "$REVISION" || fail "git archive failed"
  queued scp "$FOLDER/$archive" "$NAME:" --node=all --worker=all
  [ "$IAP" = no ] || TO_RUN+=(--tunnel-through-iap)
  run "${TO_RUN[@]}" || fail "the copy failed"
  # A folder for each revision and a link to the newest: nothing on the worker is deleted.
  on_workers all all "set -e; mkdir -p $HOME_THERE/code-$short; tar -xzf ~/$archive -C $HOME_THERE/code-$short; \
ln -sfn code-$short $HOME_THERE/code; export PATH=\"\$HOME/.local/bin:\$PATH\"; \
command -v uv >/dev/null || python3 -m pip install --user --quiet uv; \
[ -x $HOME_THERE/venv/bin/python ] || uv venv --quiet --python $PYTHON_VERSION $HOME_THERE/venv; \
uv pip install --quiet --python $HOME_THERE/venv/bin/python \"$HOME_THERE/code[tpu]\"; \
echo \"\$(hostname): installed $short\"" ||
    fail "the installation failed"
}

run_recipe() {
  local command
  need RECIPE WORKDIR
  case $WORKDIR in
    /?*) ;;
    *) mistake "--workdir is an absolute path that every worker sees (a bucket mounted by gcsfuse, or NFS), not $WORKDIR" ;;
  esac
  PYTHON=python # on the workers the environment's comes first
  training_command --distributed auto # the cluster tells each process which it is
  command=$(quote "${COMMAND[@]}")
  need_active
  on_workers all all "cd $HOME_THERE/code || { echo \"\$(hostname): nothing is installed\"; exit 1; }; \
if kill -0 \"\$(cat ../$NAME.pid 2>/dev/null)\" 2>/dev/null; then \
echo \"\$(hostname): $NAME runs already\"; exit 1; fi; \
export PATH=\"$HOME_THERE/venv/bin:\$PATH\" PYTHONUNBUFFERED=1; \
nohup setsid bash launch/restart.sh --restarts $RESTARTS --pause $PAUSE -- $command >>../$NAME.log 2>&1 </dev/null & \
echo \$! >../$NAME.pid; echo \"\$(hostname): started\"" ||
    fail "it did not start on every worker; launch/tpu_vm.sh stop stops those where it did"
}

status() {
  need_active
  [ "$DRY_RUN" = yes ] || say "$NAME is ACTIVE"
  on_workers all all "cd $HOME_THERE && if kill -0 \"\$(cat $NAME.pid 2>/dev/null)\" 2>/dev/null; \
then running=runs; else running='does not run'; fi; echo \"\$(hostname): $NAME \$running; \$(tail -n 1 $NAME.log)\""
}

follow() {
  need_active
  on_workers "$NODE" "$WORKER" "tail -n 100 -F $HOME_THERE/$NAME.log"
}

stop() {
  need_active
  on_workers all all "cd $HOME_THERE; pid=\$(cat $NAME.pid 2>/dev/null); \
kill -TERM \"\$pid\" 2>/dev/null || { echo \"\$(hostname): $NAME does not run\"; exit 0; }; \
for i in \$(seq $STOP_SECONDS); do kill -0 \"\$pid\" 2>/dev/null || break; sleep 1; done; \
if kill -0 \"\$pid\" 2>/dev/null; then echo \"\$(hostname): still running after $STOP_SECONDS seconds\"; exit 1; fi; \
echo \"\$(hostname): \$(tail -n 1 $NAME.log)\"" ||
    fail "not every worker has stopped; launch/tpu_vm.sh status shows more"
}

delete() {
  if [ "$DRY_RUN" = yes ]; then
    queued describe "$NAME" --format="value(tpu.nodeSpec[0].node.labels.$LABEL)"
    printf '%s  # only if it says %s:\n' "$(quote "${TO_RUN[@]}")" "$OWNER"
  else
    check_ours "this page deletes only what it made"
  fi
  confirm "delete the queued resource $NAME of $PROJECT in $ZONE, its VMs and their disks?"
  queued delete "$NAME"
  run "${TO_RUN[@]}" --force --quiet || fail "gcloud could not delete $NAME"
}

parse_flags "$@"
need NAME PROJECT ZONE
[ -n "$OWNER" ] || OWNER=$(label_of_user)
need_plain_names NAME OWNER
need_numbers SLICES RESTARTS PAUSE STOP_SECONDS POLL_SECONDS NODE WORKER
need_tools gcloud
case $VERB in
  create | run) ;;
  *) [ ${#ARGS[@]} -eq 0 ] || mistake "$VERB takes nothing after --" ;;
esac
case $VERB in
  run) run_recipe ;;
  *) "$VERB" ;;
esac

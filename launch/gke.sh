#!/usr/bin/env bash
# Trains on TPUs of Google Kubernetes Engine, through xpk (written for 1.16; install it in an environment of its own).
#
#   launch/gke.sh create     makes a cluster with SLICES slices; what follows -- goes to xpk cluster create
#   launch/gke.sh run        starts the recipe on it, or continues it; what follows -- goes to the trainer
#   launch/gke.sh status     lists the cluster's workloads
#   launch/gke.sh follow     shows a worker's log as it grows
#   launch/gke.sh stop       deletes the workload, if run made it; its pods get SIGTERM and STOP_SECONDS to save
#   launch/gke.sh delete     deletes the cluster, if create made it
#
# Kubernetes restarts a run that was preempted (exit code 75) or crashed, at most RESTARTS times; a mistake in recipe or
# data (exit code 2) ends it. The image is IMAGE with the last commit in /app, which xpk builds and pushes.
# --xpk-dry-run asks xpk what it would do: it then prints its own commands and the Kubernetes manifest.

# --- settings
NAME=jaxvlm                     # of the workload
CLUSTER=                        # the cluster
PROJECT=                        # Google Cloud project
ZONE=                           # such as us-east5-b
TPU_TYPE=                       # such as v5litepod-16, v5p-64, v6e-16; of each slice
SLICES=1                        # slices of this type
CAPACITY=spot                   # of the cluster that create makes: spot, on-demand, or the name of a reservation
IMAGE=python:3.12               # image that the checkout is put on; Python 3.11 or newer
RECIPE=                         # the recipe, as in the checkout, such as configs/llava15_7b_finetune.py
WORKDIR=                        # where the run is kept: a path on a storage that xpk mounts (xpk storage create)
RESTARTS=20                     # how often a run that was told to stop or crashed is started again
STOP_SECONDS=600                # how long its pods may take to save (Google gives pods on spot nodes less)
SLICE=0                         # slice whose log follow shows
WORKER=0                        # worker of that slice
DIRTY=no                        # yes: run copies the checkout as it is, with what is not committed
XPK_DRY_RUN=no                  # yes: xpk runs, and only prints
OWNER=                          # mark of what is made here, and of what may be deleted; empty: your user name
# --- end of settings

set -u
PAGE=${BASH_SOURCE[0]}
VERBS="create run status follow stop delete"
# shellcheck source=launch/common.sh
. "$(dirname "$PAGE")/common.sh"

LABEL=jaxvlm-launch       # of a cluster
MARK=JAXVLM_LAUNCH_OWNER  # variable in the pods of a workload

xpk_command() { # $1, $2: the command; the rest: flags
  local noun=$1 verb=$2
  shift 2
  TO_RUN=(xpk "$noun" "$verb" --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" "$@")
  [ "$XPK_DRY_RUN" = no ] || TO_RUN+=(--dry-run --skip-validation)
}

gke() { # $1: verb of gcloud container clusters; the rest: arguments
  local verb=$1
  shift
  TO_RUN=(gcloud container clusters "$verb" "$@" --project="$PROJECT" --location="${ZONE%-*}")
}

# kubectl for this cluster alone, whatever the current context is.
kube() { TO_RUN=(kubectl --context="gke_${PROJECT}_${ZONE%-*}_$CLUSTER" "$@"); }

get_credentials() {
  gke get-credentials "$CLUSTER"
  run "${TO_RUN[@]}" || fail "no access to $CLUSTER"
}

# Ends unless what the command in TO_RUN prints is the owner; $1: what it is, $2: what follows from that.
check_ours() {
  local owner
  if [ "$DRY_RUN" = yes ]; then
    printf '%s  # only if it says %s:\n' "$(quote "${TO_RUN[@]}")" "$OWNER"
  elif [ "$XPK_DRY_RUN" = no ]; then
    owner=$("${TO_RUN[@]}") || fail "could not look at $1; nothing was changed"
    [ "$owner" = "$OWNER" ] || fail "$1 does not carry the mark $OWNER, but ${owner:-none}: $2"
  fi
}

create() {
  local tier found made
  need TPU_TYPE
  case $CAPACITY in
    spot | on-demand) tier="--$CAPACITY" ;;
    *) tier="--reservation=$CAPACITY" ;;
  esac
  TO_RUN=(gcloud container clusters list --project="$PROJECT" --filter="name=$CLUSTER" --format="value(name)")
  if [ "$DRY_RUN" = yes ]; then
    run "${TO_RUN[@]}"
  elif [ "$XPK_DRY_RUN" = no ]; then
    found=$("${TO_RUN[@]}") || fail "gcloud cannot list the clusters of $PROJECT"
    [ -z "$found" ] || fail "$CLUSTER is there already, and xpk would change it; run works on it as it is"
  fi
  xpk_command cluster create --tpu-type="$TPU_TYPE" --num-slices="$SLICES" "$tier" ${ARGS[@]+"${ARGS[@]}"}
  run "${TO_RUN[@]}"
  made=$?
  [ "$XPK_DRY_RUN" = no ] || return "$made"
  gke update "$CLUSTER" --update-labels="$LABEL=$OWNER" # xpk has labels of its own and no flag for more
  run "${TO_RUN[@]}" || fail "$CLUSTER, if it is there, has no label $LABEL=$OWNER, so delete will not touch it"
  [ "$made" -eq 0 ] || fail "xpk did not finish $CLUSTER; delete removes what there is of it"
}

run_recipe() {
  need TPU_TYPE RECIPE WORKDIR
  case $WORKDIR in
    /?*) ;;
    *) mistake "--workdir is an absolute path on a storage that xpk mounts (xpk storage create --type gcsfuse), not $WORKDIR: the disk of a pod goes with the pod" ;;
  esac
  choose_revision
  make_folder
  run git -C "$ROOT" archive --format=tar --output="$FOLDER/checkout.tar" "$REVISION" || fail "git archive failed"
  run mkdir "$FOLDER/checkout" || fail "no temporary folder"
  run tar -xf "$FOLDER/checkout.tar" -C "$FOLDER/checkout" || fail "the checkout could not be unpacked"
  PYTHON=python
  training_command --distributed auto # the cluster tells each process which it is
  # exec: SIGTERM then reaches the trainer. xpk starts again after the exit codes 42 and 127 to 255, and those named.
  xpk_command workload create --workload="$NAME" --tpu-type="$TPU_TYPE" --num-slices="$SLICES" \
    --base-docker-image="$IMAGE" --script-dir="$FOLDER/checkout" --env="$MARK=$OWNER" --max-restarts="$RESTARTS" \
    --restart-on-exit-codes=1,75 --termination-grace-period-seconds="$STOP_SECONDS" \
    --command="pip install --quiet '.[tpu]' && exec $(quote "${COMMAND[@]}")"
  run "${TO_RUN[@]}" ||
    fail "xpk did not start $NAME; if it is there already, stop it first, and run continues it"
}

status() {
  xpk_command workload list
  run "${TO_RUN[@]}"
}

follow() {
  get_credentials
  kube logs --follow --tail=100 --container=jax-tpu --selector="jobset.sigs.k8s.io/jobset-name=$NAME,\
jobset.sigs.k8s.io/job-index=$SLICE,batch.kubernetes.io/job-completion-index=$WORKER"
  run "${TO_RUN[@]}"
}

stop() {
  [ "$XPK_DRY_RUN" = yes ] || get_credentials
  kube get jobset "$NAME" --ignore-not-found \
    --output="jsonpath={.spec.replicatedJobs[0].template.spec.template.spec.containers[0].env[?(@.name==\"$MARK\")].value}"
  check_ours "the workload $NAME" "this page deletes only what it made"
  xpk_command workload delete --workload="$NAME" --force
  run "${TO_RUN[@]}" || fail "xpk could not delete $NAME"
}

delete() {
  gke describe "$CLUSTER" --format="value(resourceLabels.$LABEL)"
  check_ours "the cluster $CLUSTER" "this page deletes only what it made"
  [ "$XPK_DRY_RUN" = yes ] || confirm "delete the cluster $CLUSTER of $PROJECT with all that runs on it?"
  xpk_command cluster delete --force
  run "${TO_RUN[@]}" || fail "xpk could not delete $CLUSTER"
}

parse_flags "$@"
need NAME CLUSTER PROJECT ZONE
[ -n "$OWNER" ] || OWNER=$(label_of_user)
need_plain_names NAME CLUSTER OWNER
need_numbers SLICES RESTARTS STOP_SECONDS SLICE WORKER
if [ "$XPK_DRY_RUN" = yes ]; then need_tools xpk; else need_tools xpk gcloud kubectl; fi
case $VERB in
  create | run) ;;
  *) [ ${#ARGS[@]} -eq 0 ] || mistake "$VERB takes nothing after --" ;;
esac
case $VERB in
  run) run_recipe ;;
  *) "$VERB" ;;
esac

# shellcheck shell=bash
# shellcheck disable=SC2034  # the pages use what is set here
# What the pages share: settings and flags, commands that can be printed instead of run, a copy of the checkout.
# It keeps to what the bash 3.2 of macOS knows, and expects PAGE (the page's file) and VERBS (its sub-commands).

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NAME_OF_PAGE=$(basename "$PAGE")
DRY_RUN=no
YES=no
VERB=
ARGS=() # what follows --

say() { printf '%s\n' "$NAME_OF_PAGE: $*" >&2; }

# Ends with 2: the person who started the page has to change something.
mistake() {
  say "$*"
  exit 2
}

# Ends with 1: something else went wrong.
fail() {
  say "$*"
  exit 1
}

settings_block() { sed -n '/^# --- settings/,/^# --- end of settings/p' "$PAGE"; }

setting_names() { settings_block | sed -n 's/^\([A-Z_][A-Z_]*\)=.*/\1/p'; }

flag_of() { printf '%s' "--$1" | tr '[:upper:]_' '[:lower:]-'; }

# The comment of a setting, from the top of the page.
meaning_of() { settings_block | sed -n "s/^$1=[^#]*# *//p"; }

usage() {
  local name value
  sed -n '2,/^$/s/^# \{0,1\}//p' "$PAGE"
  printf 'Settings: edit the top of %s, or give flags (--flag X or --flag=X; yes or no: --flag, --no-flag).\n' \
    "launch/$NAME_OF_PAGE"
  for name in $(setting_names); do
    value=${!name}
    printf '  %-20s %s%s\n' "$(flag_of "$name")" "$(meaning_of "$name")" "${value:+ [$value]}"
  done
  printf '  %-20s %s\n' \
    --dry-run "print the commands, quoted so that they can be pasted, and run nothing" \
    --yes "do not ask before something is deleted" \
    --help "print this"
}

# Sets the settings from flags, VERB from the first word and ARGS from what follows --.
parse_flags() {
  local word value name known
  known=" $(setting_names | tr '\n' ' ')"
  while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
      --) ARGS=("$@") && break ;;
      --help | -h) usage && exit 0 ;;
      --dry-run) DRY_RUN=yes && continue ;;
      --yes) YES=yes && continue ;;
      --*) ;;
      *)
        case " $VERBS " in
          *" $word "*) ;;
          *) mistake "no sub-command $word; it has: ${VERBS:-none}" ;;
        esac
        [ -z "$VERB" ] || mistake "two sub-commands: $VERB and $word"
        VERB=$word
        continue
        ;;
    esac
    name=$(printf '%s' "${word%%=*}" | sed 's/^--//' | tr '[:lower:]-' '[:upper:]_')
    value=yes
    case $name in
      NO_*)
        name=${name#NO_}
        value=no
        ;;
    esac
    case $known in
      *" $name "*) ;;
      *) mistake "no flag ${word%%=*}; --help lists them, and what follows -- goes to the program" ;;
    esac
    case $word in
      --no-*=*) mistake "$word: a flag with --no- has no value" ;;
    esac
    case ${!name} in
      yes | no)
        case $word in
          *=*) value=${word#*=} ;;
        esac
        case $value in
          yes | no) ;;
          *) mistake "$(flag_of "$name") is yes or no, not $value" ;;
        esac
        ;;
      *)
        [ "$value" = yes ] || mistake "no flag $word: $(flag_of "$name") is not a yes or no"
        case $word in
          *=*) value=${word#*=} ;;
          *)
            [ $# -gt 0 ] || mistake "$word needs a value"
            value=$1
            shift
            ;;
        esac
        ;;
    esac
    printf -v "$name" '%s' "$value"
  done
  if [ -n "$VERBS" ] && [ -z "$VERB" ]; then
    usage >&2
    mistake "say what to do: ${VERBS// /, }"
  fi
}

# Ends with one message that names every one of these settings that is empty.
need() {
  local name missing=
  for name in "$@"; do
    [ -n "${!name}" ] || missing="$missing
  $(flag_of "$name"): $(meaning_of "$name")"
  done
  [ -z "$missing" ] || mistake "missing (give the flags, or set them at the top of launch/$NAME_OF_PAGE):$missing"
}

need_numbers() {
  local name
  for name in "$@"; do
    case ${!name} in
      '' | *[!0-9]* | 0?*) mistake "$(flag_of "$name") is a number, not \"${!name}\"" ;;
    esac
  done
}

# Names go into resources, labels and files.
need_plain_names() {
  local name value
  for name in "$@"; do
    value=${!name}
    case $value in
      [!a-z]* | *[!a-z0-9-]* | *-)
        mistake "$(flag_of "$name") is of small letters, digits and inner dashes and starts with a letter," \
          "unlike \"$value\""
        ;;
    esac
    [ ${#value} -le 40 ] || mistake "$(flag_of "$name") has up to 40 characters, unlike \"$value\""
  done
}

# A person as a label may name one: small letters, digits and dashes.
label_of_user() { id -un | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9\n' '-' | sed 's/^[^a-z]/u/;s/-*$//'; }

# The words as a shell reads them back.
quote() {
  local word separator=
  for word in "$@"; do
    printf '%s' "$separator"
    separator=' '
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf '%s' "$word" ;;
    esac
  done
}

# Runs a command and shows it; with --dry-run only shows it.
run() {
  if [ "$DRY_RUN" = yes ]; then
    printf '%s\n' "$(quote "$@")"
  else
    printf '+ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

need_tools() {
  local tool
  [ "$DRY_RUN" = no ] || return 0
  for tool in "$@"; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
  done
}

confirm() {
  local answer
  [ "$YES" = no ] && [ "$DRY_RUN" = no ] || return 0
  printf '%s [y/N] ' "$1" >&2
  read -r answer || answer=
  case $answer in
    y | Y | yes) ;;
    *) fail "left as it is" ;;
  esac
}

# The trainer's command line, from PYTHON, RECIPE, WORKDIR and ARGS, in COMMAND; $@: flags of the page's own.
training_command() {
  COMMAND=("$PYTHON" -m jaxvlm.train --config "$RECIPE" --workdir "$WORKDIR" --resume-or-start "$@")
  COMMAND+=(${ARGS[@]+"${ARGS[@]}"})
}

# Sets REVISION to what is copied to the machines: the commit, or with --dirty a tree of everything git does not ignore.
# The pages themselves may be edited: their settings are of no use on the machines.
choose_revision() {
  local changed index pages=(':!launch/local.sh' ':!launch/tpu_vm.sh' ':!launch/gke.sh' ':!launch/slurm.sh')
  changed=$(git -C "$ROOT" status --porcelain -- . "${pages[@]}") || fail "$ROOT is no git checkout; nothing to copy"
  if [ -n "$changed" ] && [ "$DIRTY" = no ]; then
    mistake "the checkout differs from its last commit; commit, or pass --dirty to copy it as it is:
$changed"
  fi
  REVISION=$(git -C "$ROOT" rev-parse HEAD) || fail "$ROOT has no commit"
  [ -n "$changed" ] || return 0
  if [ "$DRY_RUN" = yes ]; then
    REVISION=TREE # git makes it only in a real run
    echo "# TREE: what is in the checkout now, as a tree of git"
    return 0
  fi
  index=$(mktemp -d) || fail "no temporary folder"
  cp "$(git -C "$ROOT" rev-parse --absolute-git-dir)/index" "$index/index"
  REVISION=$(
    export GIT_INDEX_FILE=$index/index # the person's own index stays as it is
    git -C "$ROOT" add --all && git -C "$ROOT" write-tree
  ) || fail "could not collect the checkout"
  rm -r "$index"
}

# Sets FOLDER to a temporary folder, which goes with the page.
make_folder() {
  if [ "$DRY_RUN" = yes ]; then
    FOLDER=${TMPDIR:-/tmp}/jaxvlm-launch # one that can be pasted
    run mkdir -p "$FOLDER"
  else
    FOLDER=$(mktemp -d) || fail "no temporary folder"
    trap 'rm -r "$FOLDER"' EXIT
  fi
}

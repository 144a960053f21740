#!/bin/sh
# The start of a pod's container: prepares the folders, gives up root, and becomes the agent, which does the rest.
#
# Needs TROUPE_CONTROL_PLANE_URL, TROUPE_JOIN_TOKEN and, where RUNPOD_POD_ID does not tell it, TROUPE_POD_URL. Secrets
# stay in the environment, from where the agent takes them; this script never prints one. What is given as arguments is
# handed on to the agent. Paths have the image's defaults and can all be set: pod_images/comfyui/README.md lists them.
set -eu

say() {
    printf 'troupe: %s\n' "$*" >&2
}

refuse() {
    say "$*"
    exit 78 # EX_CONFIG of sysexits.h
}

APP="${TROUPE_APP:-/opt/troupe/app}"
AGENT_PYTHON="${TROUPE_AGENT_PYTHON:-/opt/venvs/agent/bin/python}"
VOLUME="${TROUPE_VOLUME:-/workspace}"
MODELS="${TROUPE_MODELS:-$VOLUME/models}"
DATA="${TROUPE_DATA:-/var/lib/troupe}"
PORT="${TROUPE_POD_PORT:-8188}"
LABELS="${TROUPE_POD_LABELS:-image,video,train}"
RUN_AS="${TROUPE_RUN_AS-troupe}"
# Set but empty means no manifest: the models on the volume are all there is.
MANIFEST="${TROUPE_MODELS_MANIFEST-$APP/pod_images/comfyui/models.yaml}"

export COMFYUI_DIR="${COMFYUI_DIR:-/opt/ComfyUI}"
export COMFYUI_PYTHON="${COMFYUI_PYTHON:-/opt/venvs/comfyui/bin/python}"
export SD_SCRIPTS_DIR="${SD_SCRIPTS_DIR:-/opt/sd-scripts}"
export SD_SCRIPTS_PYTHON="${SD_SCRIPTS_PYTHON:-/opt/venvs/sd-scripts/bin/python}"
export SD_SCRIPTS_TOKENIZERS="${SD_SCRIPTS_TOKENIZERS:-$MODELS/tokenizers}"
export HF_HOME="${HF_HOME:-$DATA/huggingface}"

# --- what must be told ------------------------------------------------------------------------------------------------

[ -n "${TROUPE_CONTROL_PLANE_URL:-}" ] ||
    refuse "TROUPE_CONTROL_PLANE_URL is missing: the address this pod reaches your Troupe server at"
[ -n "${TROUPE_JOIN_TOKEN:-}" ] ||
    refuse "TROUPE_JOIN_TOKEN is missing: the join token your Troupe server was started with"
[ -n "${RUNPOD_POD_ID:-}${TROUPE_POD_URL:-}" ] ||
    refuse "TROUPE_POD_URL is missing: the address your Troupe server reaches this pod at, such as http://10.0.0.5:8188"
case "$PORT" in
'' | *[!0-9]*) refuse "TROUPE_POD_PORT is no port number: $PORT" ;;
esac
[ -f "$COMFYUI_DIR/main.py" ] || refuse "there is no ComfyUI in $COMFYUI_DIR: it has no main.py"
[ -z "$MANIFEST" ] || [ -r "$MANIFEST" ] || refuse "TROUPE_MODELS_MANIFEST names no file that can be read: $MANIFEST"

# --- folders ----------------------------------------------------------------------------------------------------------

mkdir -p "$MODELS" "$DATA" 2>/dev/null ||
    refuse "the folders $MODELS and $DATA cannot be made: mount a volume at $VOLUME that user $(id -u) may write to"
mountpoint -q "$VOLUME" ||
    say "$VOLUME is no volume: the models will be fetched again whenever this container is made anew"

as_user=''
if [ "$(id -u)" = 0 ] && [ -n "$RUN_AS" ] && [ "$RUN_AS" != root ]; then
    id "$RUN_AS" >/dev/null 2>&1 || refuse "TROUPE_RUN_AS names no user of this container: $RUN_AS"
    as_user="setpriv --reuid=$RUN_AS --regid=$(id -g "$RUN_AS") --init-groups"
    # Folders, and downloads that were broken off: a finished model need only be read. Where the disk keeps root as the
    # owner of everything, the test below finds out.
    find "$MODELS" "$DATA" \( -type d -o -name '.*.part' \) ! -user "$RUN_AS" \
        -exec chown "$RUN_AS" {} + 2>/dev/null || true
    for folder in "$MODELS" "$DATA"; do
        # shellcheck disable=SC2086 # the words of as_user are meant to be words
        if [ -n "$as_user" ] && ! $as_user test -w "$folder"; then
            say "$folder cannot be given to user $RUN_AS: this pod runs as root"
            as_user=''
        fi
    done
fi
[ -w "$MODELS" ] && [ -w "$DATA" ] || refuse "$MODELS and $DATA cannot be written by user $(id -u)"
if [ -n "$as_user" ]; then
    HOME=$(getent passwd "$RUN_AS" | cut -d: -f6)
    export HOME
elif [ ! -w "${HOME:-/nonexistent}" ]; then
    export HOME="$DATA" # a user without a home, as --user gives: caches of compiled kernels need one
fi

# --- the agent --------------------------------------------------------------------------------------------------------

set -- --comfyui-dir "$COMFYUI_DIR" --comfyui-python "$COMFYUI_PYTHON" \
    --data "$DATA" --models "$MODELS" \
    --host "${TROUPE_POD_HOST:-0.0.0.0}" --port "$PORT" --labels "$LABELS" "$@"
[ -z "$MANIFEST" ] || set -- --models-manifest "$MANIFEST" "$@"
[ -z "${TROUPE_POD_URL:-}" ] || set -- --public-address "$TROUPE_POD_URL" "$@"
[ -z "${TROUPE_POD_NAME:-}" ] || set -- --name "$TROUPE_POD_NAME" "$@"
[ -z "${TROUPE_COMFYUI_ARGS:-}" ] || set -- --comfyui-args="$TROUPE_COMFYUI_ARGS" "$@"
[ -z "${TROUPE_DEAD_MAN_MINUTES:-}" ] || set -- --dead-man-minutes "$TROUPE_DEAD_MAN_MINUTES" "$@"

say "starting the agent: models in $MODELS, its own files in $DATA, port $PORT, labels $LABELS"
cd "$APP"
# exec all the way: the agent has this process's id, so that it is who hears SIGTERM and drains.
# shellcheck disable=SC2086 # see above
exec $as_user "$AGENT_PYTHON" -m pod_images.agent "$@"

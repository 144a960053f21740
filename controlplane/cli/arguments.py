"""The command line's grammar."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeAlias

DEFAULT_URL = "http://127.0.0.1:8700"
DESCRIPTION = "Reference images and a name in, a character out: images and video of it."


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``troupe``; the chosen command's name is in ``command``."""
    parser = argparse.ArgumentParser(prog="troupe", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_processes(commands)
    _add_making(commands)
    _add_lists(commands)
    _add_pausing(commands)
    _add_pods(commands)
    _add_webhooks(commands)
    _add_pod(commands)
    return parser


# argparse has no public name for what add_subparsers answers.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_processes(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="the whole loop on this machine, with an example character")
    demo.add_argument("--characters", type=_count, default=1, metavar="N", help="how many example characters (1)")
    demo.add_argument("--recipe", default="fast", help="training recipe (fast)")
    demo.add_argument("--folder", type=Path, default=Path("demo"), help="where data and contact sheet go (./demo)")
    demo.add_argument("--examples", type=Path, help="folder of character folders (examples/characters)")
    _add_pod_options(demo)

    serve = commands.add_parser("serve", help="the server, until Ctrl-C")
    serve.add_argument("--host", help="address to listen on (TROUPE_HOST, 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on, 0 for a free one (TROUPE_PORT, 8700)")
    serve.add_argument("--data", type=Path, help="data folder (TROUPE_DATA, ./data)")
    serve.add_argument("--embedded-pod", action="store_true", help="also start two embedded pods on this machine")
    serve.add_argument("--parent-pid", type=int, default=0, help=argparse.SUPPRESS)
    _add_pod_options(serve)

    migrate = commands.add_parser("migrate", help="bring the database to this version's shape")
    migrate.add_argument("--data", type=Path, help="data folder (TROUPE_DATA, ./data)")


def _add_pod_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--comfyui-dir", type=Path, help="a ComfyUI on this machine to use as a pod")
    parser.add_argument("--models", type=Path, action="append", default=[], help="the pods' model folder; repeat")
    parser.add_argument("--engine", choices=("sketch", "tiny"), default="sketch", help="embedded pods' model (sketch)")
    parser.add_argument("--threads", type=_count, help="threads of each pod (the number of cores)")


def _add_making(commands: Commands) -> None:
    create = _client(commands, "create", "train a new character on a folder of images")
    create.add_argument("name", metavar="NAME")
    create.add_argument("folder", type=Path, metavar="FOLDER", help="images, and captions.json if you like")
    for field in ("class-word", "trigger-word", "description", "base-model", "recipe"):
        create.add_argument(f"--{field}")
    _add_urgency(create)
    create.add_argument("--no-wait", action="store_true", help="return as soon as the training is queued")

    image = _client(commands, "image", "make images of a character")
    _add_generation(image)
    image.add_argument("--count", type=int)
    image.add_argument("--format", choices=("png", "webp", "jpeg"))

    video = _client(commands, "video", "make a video of a character")
    _add_generation(video)
    video.add_argument("--frames", type=int)
    video.add_argument("--seconds", type=float)
    video.add_argument("--fps", type=float)
    video.add_argument("--motion", help="what happens, in words")
    video.add_argument("--image-asset", dest="image_asset_id", metavar="ID", help="start at this image")
    video.add_argument("--format", choices=("mp4", "webm"))


def _add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("character", metavar="CHARACTER")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--negative-prompt")
    for field in ("width", "height", "steps", "seed", "version"):
        parser.add_argument(f"--{field}", type=int)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--strength", type=float, dest="lora_strength", help="LoRA strength")
    parser.add_argument("--workflow", help="workflow template")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an input of the workflow's own; repeat"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also save the files here")
    _add_urgency(parser)
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the job is queued")


def _add_urgency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--priority", type=int, metavar="N", help="-100 to 100; among waiting jobs more goes first (0)")
    seconds = "fail it unless it is done by then"
    parser.add_argument("--deadline", type=float, dest="deadline_seconds", metavar="SECONDS", help=seconds)


def _add_lists(commands: Commands) -> None:
    for name, words in (
        ("characters", "list characters"),
        ("jobs", "list jobs, newest first"),
        ("workflows", "list workflow templates"),
    ):
        listing = _client(commands, name, words)
        if name in ("characters", "jobs"):
            listing.add_argument("--limit", type=_count, default=20)
        if name == "jobs":
            listing.add_argument("--character", metavar="ID")
            listing.add_argument("--status", help="one status or several: queued,running")
            listing.add_argument("--kind", choices=("image", "video", "train"))
        if name == "workflows":
            _add_workflow_actions(listing)


def _add_workflow_actions(listing: argparse.ArgumentParser) -> None:
    actions = listing.add_subparsers(dest="action", metavar="ACTION", help="without one: the list")
    importing = _action(actions, "import", "make an export of ComfyUI usable as a workflow, in one go")
    importing.add_argument("file", type=Path, metavar="FILE", help="API export (.json), or a picture that carries one")
    importing.add_argument("--name", help="what requests call it (the file's name)")
    importing.add_argument("--title")
    importing.add_argument("--kind", choices=("image", "video"), help="what it makes (as the graph says)")
    importing.add_argument("--base", help="base model of its characters (by its checkpoint)")
    importing.add_argument("--insert-character", action="store_true", help="put a character's LoRA behind the model")
    importing.add_argument("--dry-run", action="store_true", help="only tell what would come of it")
    for name, words in (("show", "its inputs and what it needs"), ("remove", "remove an imported workflow")):
        _action(actions, name, words).add_argument("name", metavar="NAME")
    trying = actions.add_parser("try", help="run an export on one ComfyUI, without a server, and save what comes out")
    trying.add_argument("file", type=Path, metavar="FILE", help="API export (.json), or a picture that carries one")
    trying.add_argument("--comfyui", required=True, metavar="URL", help="ComfyUI's address, such as 127.0.0.1:8188")
    trying.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an input, or NODE.FIELD; repeat"
    )
    trying.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="where files go (./out)")
    token = os.environ.get("TROUPE_POD_TOKEN", "")
    trying.add_argument("--token", default=token, help="bearer token of an agent in front of it (TROUPE_POD_TOKEN)")


def _add_pausing(commands: Commands) -> None:
    pause = _client(commands, "pause", "begin no further job of the project; what runs goes on")
    pause.add_argument("reason", nargs="?", metavar="REASON", help="what waiting jobs tell")
    _client(commands, "resume", "let the project's waiting jobs begin again")


def _add_pods(commands: Commands) -> None:
    pods = _client(commands, "pods", "list pods; rent and end them")
    actions = pods.add_subparsers(dest="action", metavar="ACTION", help="without one: list")
    _action(actions, "list", "all pods, with boot progress, price and restarts (what no action means)")
    listing = _action(actions, "rentals", "what was rented and what it has cost, newest first")
    listing.add_argument("--limit", type=_count, default=20)

    rent = _action(actions, "rent", "rent a pod at RunPod")
    rent.add_argument("--gpu", action="append", metavar="ID", help="RunPod's id of a GPU type, best first; repeat")
    rent.add_argument("--memory", type=_count, metavar="GB", help="least memory of the GPU (TROUPE_POD_MEMORY_GB, 24)")
    rent.add_argument("--count", type=_count, metavar="N", help="GPUs of the pod (1)")
    rent.add_argument("--max-price", type=float, metavar="DOLLARS", help="at most this per hour")
    rent.add_argument("--max-hours", type=float, metavar="HOURS", help="end it after this time")
    rent.add_argument("--cloud", choices=("SECURE", "COMMUNITY"), help="TROUPE_POD_CLOUD, SECURE")
    rent.add_argument("--data-centre", action="append", metavar="ID", help="where it may run; repeat")
    rent.add_argument("--label", action="append", metavar="LABEL", help="image, video, train; repeat")
    rent.add_argument("--wait", action="store_true", help="follow it until it can work")

    end = _action(actions, "end", "end rented pods for good")
    end.add_argument("ids", nargs="+", metavar="ID", help="rental, pod, or RunPod's id")
    _action(actions, "reconcile", "end every rented pod of this installation that is in nobody's books")


def _add_webhooks(commands: Commands) -> None:
    webhooks = _client(commands, "webhooks", "list webhooks; add, test and look after them")
    actions = webhooks.add_subparsers(dest="action", metavar="ACTION", help="without one: list")
    _action(actions, "list", "all webhooks (what no action means)")
    add = _action(actions, "add", "tell an address what happens; prints the secret, once")
    add.add_argument("address", metavar="URL")
    add.add_argument("--type", action="append", metavar="TYPE", help="a type of event, such as job.failed; repeat")
    add.add_argument("--description")
    for name, words in (
        ("remove", "remove a webhook"),
        ("rotate", "give it a new secret, printed once; the old one signs for a day as well"),
        ("test", "send it a message that says nothing, and tell whether it arrived"),
        ("enable", "tell it things again"),
        ("disable", "tell it nothing for now"),
        ("deliveries", "what it was told, newest first"),
        ("redeliver", "send it messages again"),
    ):
        action = _action(actions, name, words)
        action.add_argument("id", metavar="WEBHOOK")
        if name == "deliveries":
            action.add_argument("--state", choices=("waiting", "delivered", "failed"))
            action.add_argument("--limit", type=_count, default=20)
        if name == "redeliver":
            action.add_argument("deliveries", nargs="+", metavar="DELIVERY")


def _action(actions: Commands, name: str, words: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=words)
    # What is not given here stays as it was given before the action.
    parser.add_argument("--url", default=argparse.SUPPRESS, help="the server")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the server's JSON")
    return parser


def _client(commands: Commands, name: str, words: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words)
    url = os.environ.get("TROUPE_URL") or DEFAULT_URL
    parser.add_argument("--url", default=url, help=f"the server (TROUPE_URL, {DEFAULT_URL})")
    parser.add_argument("--json", action="store_true", help="print the server's JSON")
    return parser


def _add_pod(commands: Commands) -> None:
    pod = commands.add_parser("pod", help="run a pod on this machine")
    kinds = pod.add_subparsers(dest="kind", required=True, metavar="KIND")
    comfyui = kinds.add_parser("comfyui", help="a ComfyUI of your own, guarded by its agent, until Ctrl-C")
    add = comfyui.add_argument
    add("--comfyui-dir", type=Path, metavar="DIR", help="the ComfyUI checkout; it is only read (COMFYUI_DIR)")
    add("--comfyui-python", metavar="FILE", help="the interpreter with ComfyUI's packages (COMFYUI_PYTHON, this one)")
    add("--comfyui-args", metavar="TEXT", help='ComfyUI\'s own options, such as "--cpu" (COMFYUI_ARGS)')
    add("--control-plane", metavar="URL", help="where to register; without it the pod serves whoever has its token")
    add("--token", help="join token; rather in TROUPE_JOIN_TOKEN, which no list of processes shows")
    add("--data", type=Path, metavar="DIR", help="what the pod keeps (./troupe-pod)")
    add("--base-directory", type=Path, metavar="DIR", help="ComfyUI's input, output and temp (DATA/comfyui)")
    add("--models", type=Path, action="append", metavar="DIR", help="a folder of model folders; repeat")
    add("--models-manifest", type=Path, metavar="FILE", help="model files to have before ComfyUI starts")
    add("--host", help="address to listen on (127.0.0.1)")
    add("--port", type=int, help="port to listen on (a free one)")
    add("--public-address", metavar="URL", help="where the control plane reaches this pod, if not there")
    add("--labels", help="what it is for: image,video,train (anything)")
    add("--name", help="what the pod is called")
    add("--dead-man-minutes", type=float, metavar="N", help="end it when the control plane is silent so long (15)")
    add("--hung-seconds", type=float, metavar="N", help="a node without a sign of life so long hangs (120)")
    add("--memory-limit", type=int, metavar="BYTES", help="restart an idle ComfyUI past this; 0: never (90 %% of all)")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number

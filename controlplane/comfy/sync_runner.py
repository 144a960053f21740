"""One graph on one ComfyUI, straight and synchronous: uploads, progress, results, and every failure as a sentence."""

from __future__ import annotations

import json
import mimetypes
import secrets
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket

from controlplane.comfy.messages import (
    Cached,
    Ended,
    Executing,
    Finished,
    Message,
    Progress,
    ProgressState,
    parse_history,
    parse_queue,
    parse_text,
)
from controlplane.comfy.prompt import prompt_body
from controlplane.errors import TroupeError

CALL_SECONDS = 30.0
FILE_SECONDS = 600.0
HINT_SECONDS = 1.0
LOOK_SECONDS = 2.0
ABSENT_LOOKS = 3
UNREACHABLE_SECONDS = 60.0
REST_SECONDS = 0.2
CHUNK = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RunFailed(TroupeError):
    """The graph did not run through."""


class RunStopped(RunFailed):
    """The run was stopped from here."""


class ComfyUnreachable(RunFailed):
    """ComfyUI did not answer."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is: ``fraction`` of the whole graph (0 to 1), the node at work, and its steps if it has any."""

    fraction: float
    node: str | None = None
    step: int | None = None
    total_steps: int | None = None


@dataclass(frozen=True)
class ResultFile:
    """One file that a node reported, under whatever key: fetch it with ``SyncRunner.download``."""

    node: str
    filename: str
    subfolder: str
    type: str


class SyncRunner:
    """One ComfyUI by its address. ``stop`` ends a run from another thread; ``token`` is sent as a bearer token."""

    def __init__(self, url: str, token: str = "", stop: threading.Event | None = None) -> None:
        self._url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._stop = stop or threading.Event()
        self._direct = [host] if (host := urllib.parse.urlsplit(self._url).hostname or "") in LOOPBACK else []
        proxies = (urllib.request.ProxyHandler({}),) if self._direct else ()
        self._opener = urllib.request.build_opener(_NoRedirects(), *proxies)

    def object_info(self, classes: Sequence[str]) -> dict[str, Any]:
        """What this ComfyUI says of node classes; what it lacks is left out."""
        found: dict[str, Any] = {}
        for name in dict.fromkeys(classes):
            found.update(self._get(f"/object_info/{urllib.parse.quote(name, safe='')}"))
        return found

    def upload(self, path: Path) -> str:
        """Place a local picture among the inputs, in place of one of its name; the name that a graph must use."""
        boundary = secrets.token_hex(16)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        name = path.name.replace('"', "_").replace("\r", "_").replace("\n", "_")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        media_type = f"multipart/form-data; boundary={boundary}"
        stored = self._json(self._call("POST", "/upload/image", body, media_type, FILE_SECONDS))
        return "/".join(part for part in (stored.get("subfolder"), stored.get("name")) if part)

    def run(self, graph: Mapping[str, Any], told: Callable[[RunProgress], None]) -> Finished:
        """Run a graph to its end; RunFailed says what went wrong where, ComfyUnreachable and RunStopped are of it."""
        client_id, prompt_id = str(uuid.uuid4()), str(uuid.uuid4())
        hints = _Hints(self._url, self._headers, client_id, self._direct)
        try:
            self._submit(graph, prompt_id, client_id)
            finished = self._follow(graph, prompt_id, hints, told)
        finally:
            hints.close()
        if finished.how == "interrupted":
            raise RunStopped("The run was interrupted on ComfyUI's side.")
        if finished.how == "failed":
            raise RunFailed(_words_of_failure(graph, finished))
        return finished

    def download(self, file: ResultFile, folder: Path) -> Path:
        """Save a result in a folder under its own name, numbered where that is taken."""
        query = urllib.parse.urlencode({"filename": file.filename, "subfolder": file.subfolder, "type": file.type})
        data = self._call("GET", f"/view?{query}", seconds=FILE_SECONDS)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _names(file.filename):
            try:
                with (folder / name).open("xb") as target:
                    target.write(data)
                return folder / name
            except FileExistsError:
                continue
        raise AssertionError("there is always a further name")

    # one run

    def _submit(self, graph: Mapping[str, Any], prompt_id: str, client_id: str) -> None:
        body = json.dumps(prompt_body(graph, prompt_id, client_id)).encode()
        try:
            answer = self._json(self._call("POST", "/prompt", body, "application/json"))
        except _Answered as error:
            raise RunFailed(_words_of_refusal(graph, error.status, error.text)) from None
        if answer.get("node_errors"):
            # Only a part of the graph would run.
            self._take_back(prompt_id)
            raise RunFailed(_words_of_refusal(graph, 200, json.dumps(answer)))

    def _follow(
        self, graph: Mapping[str, Any], prompt_id: str, hints: _Hints, told: Callable[[RunProgress], None]
    ) -> Finished:
        """Hints make it quick, history is the truth; a prompt that is nowhere any more is lost."""
        absent = 0
        seen_at = looked_at = time.monotonic()
        while True:
            if self._stop.is_set():
                self._take_back(prompt_id)
                raise RunStopped("The run was stopped.")
            message = hints.next(HINT_SECONDS)
            progress = _progress(graph, prompt_id, message)
            if progress is not None:
                told(progress)
            if not _is_end(prompt_id, message) and time.monotonic() - looked_at < LOOK_SECONDS:
                continue
            looked_at = time.monotonic()
            try:
                finished = parse_history(prompt_id, self._get(f"/history/{prompt_id}"))
                if finished is not None:
                    return finished
                held = parse_queue(self._get("/queue")).holds(prompt_id)
                seen_at = time.monotonic()
            except ComfyUnreachable:
                if time.monotonic() - seen_at > UNREACHABLE_SECONDS:
                    raise
                continue
            absent = 0 if held else absent + 1
            if absent >= ABSENT_LOOKS:
                raise RunFailed("ComfyUI has lost the run: it neither runs, waits nor ended. Was it restarted?")

    def _take_back(self, prompt_id: str) -> None:
        for path, body in (("/queue", {"delete": [prompt_id]}), ("/interrupt", {"prompt_id": prompt_id})):
            self._call("POST", path, json.dumps(body).encode(), "application/json")

    # HTTP

    def _get(self, path: str) -> dict[str, Any]:
        return self._json(self._call("GET", path))

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            raise RunFailed(f"{self._url} answers, but not as ComfyUI does.") from None
        return value if isinstance(value, dict) else {}

    def _call(
        self, method: str, path: str, body: bytes | None = None, media_type: str = "", seconds: float = CALL_SECONDS
    ) -> bytes:
        headers = {**self._headers, **({"Content-Type": media_type} if media_type else {})}
        request = urllib.request.Request(self._url + path, data=body, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read(CHUNK).decode("utf-8", "replace")
            if error.code in (401, 403):
                raise RunFailed(
                    f"{self._url} wants a token, or another one ({error.code}): give it with --token."
                ) from None
            if error.code in (502, 503, 504):
                raise ComfyUnreachable(f"{self._url} is not ready ({error.code}).") from None
            if path == "/prompt":
                raise _Answered(error.code, text) from None
            raise RunFailed(f"{self._url}{path.split('?')[0]} answered {error.code}: {text[:200]}") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ComfyUnreachable(f"No answer from ComfyUI at {self._url} ({reason}). Is it running?") from None


def files_of(finished: Finished) -> Iterator[ResultFile]:
    """Every file that a run reported, each once: pictures, videos and sounds, whatever key a node puts them under."""
    seen = set()
    for node_id, told in finished.outputs.items():
        for values in told.values() if isinstance(told, Mapping) else ():
            for one in values if isinstance(values, list) else ():
                if isinstance(one, Mapping) and isinstance(one.get("filename"), str) and one["filename"]:
                    subfolder, kind = str(one.get("subfolder") or ""), str(one.get("type") or "output")
                    file = ResultFile(node_id, one["filename"], subfolder, kind)
                    if (file.filename, file.subfolder, file.type) not in seen:
                        seen.add((file.filename, file.subfolder, file.type))
                        yield file


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """ComfyUI redirects nowhere; a token must not follow one that leads elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Answered(Exception):
    """A status that the caller puts into words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status)
        self.status = status
        self.text = text


class _Hints:
    """ComfyUI's websocket. It only makes a run's progress visible: without it, looking at the history is enough."""

    def __init__(self, url: str, headers: Mapping[str, str], client_id: str, direct: list[str]) -> None:
        address = "ws" + url.removeprefix("http") + f"/ws?clientId={client_id}"
        self._socket: websocket.WebSocket | None = None
        try:
            # An Origin header of another host is refused by ComfyUI on loopback.
            self._socket = websocket.create_connection(
                address, timeout=CALL_SECONDS, header=dict(headers), suppress_origin=True, http_no_proxy=direct
            )
            self._socket.settimeout(HINT_SECONDS)
        except (websocket.WebSocketException, OSError):
            self._socket = None

    def next(self, seconds: float) -> Message | None:
        """The next message in text, None where none came in time."""
        if self._socket is None:
            time.sleep(min(seconds, REST_SECONDS))
            return None
        try:
            frame = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (websocket.WebSocketException, OSError):
            self.close()
            return None
        return parse_text(frame) if isinstance(frame, str) and frame else None

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _progress(graph: Mapping[str, Any], prompt_id: str, message: Message | None) -> RunProgress | None:
    if isinstance(message, ProgressState) and message.prompt_id == prompt_id:
        done = sum(1.0 if one.finished else one.value / max(one.maximum, 1) for one in message.nodes.values())
        working = [(node_id, one) for node_id, one in message.nodes.items() if not one.finished]
        node_id, state = working[-1] if working else (None, None)
        steps = state is not None and state.maximum > 1
        return RunProgress(
            min(done / max(len(graph), 1), 1.0),
            _title(graph, node_id) if node_id else None,
            int(state.value) if steps and state else None,
            int(state.maximum) if steps and state else None,
        )
    if isinstance(message, Cached) and message.prompt_id == prompt_id:
        return RunProgress(len(message.nodes) / max(len(graph), 1))
    if isinstance(message, Progress) and message.node is not None and message.prompt_id in (None, prompt_id):
        return None  # the same is in the next progress_state, for the whole graph
    return None


def _is_end(prompt_id: str, message: Message | None) -> bool:
    if isinstance(message, Ended):
        return message.prompt_id == prompt_id
    return isinstance(message, Executing) and message.node is None and message.prompt_id in (None, prompt_id)


def _title(graph: Mapping[str, Any], node_id: str) -> str:
    node = graph.get(node_id) or {}
    title = (node.get("_meta") or {}).get("title")
    return str(title or node.get("class_type") or node_id)


def _words_of_failure(graph: Mapping[str, Any], finished: Finished) -> str:
    error = finished.error or {}
    node_id = str(error.get("node_id") or "")
    where = f"Node {node_id} '{_title(graph, node_id)}' ({error.get('node_type')})" if node_id else "The run"
    return f"{where} failed: {error.get('message') or error.get('type') or 'ComfyUI does not say why'}"


def _words_of_refusal(graph: Mapping[str, Any], status: int, text: str) -> str:
    """ComfyUI's validation errors, node by node, in words that an artist can act on."""
    try:
        body = json.loads(text)
    except ValueError:
        return f"ComfyUI refused the graph ({status}): {text[:200]}"
    error = body.get("error") or {}
    message = str(error.get("message") or "a part of the graph is not valid") if isinstance(error, dict) else str(error)
    if "does not exist" in message:
        return f"{message} Install the node pack that it comes from on this ComfyUI."
    told = [
        f"node {node_id} '{_title(graph, node_id)}': {one.get('message')} ({one.get('details')})"
        for node_id, node in (body.get("node_errors") or {}).items()
        for one in node.get("errors") or []
    ]
    return f"ComfyUI refused the graph: {'; '.join(told[:5]) or message}"


def _names(filename: str) -> Iterator[str]:
    """A safe local file name, then the same with numbers."""
    path = Path(filename.replace("\\", "/"))
    stem, suffix = path.stem.strip(". ") or "result", path.suffix
    yield f"{stem}{suffix}"
    number = 2
    while True:
        yield f"{stem}-{number}{suffix}"
        number += 1

"""One HTTP exchange with the standard library, and the retries around it; knows nothing of Troupe's routes."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18
# How often someone who waits for a silent peer is asked whether to go on, and how many chunks are read ahead.
LOOK_EVERY_SECONDS = 0.2
CHUNKS_AHEAD = 8
# A connection that was idle for longer may have been closed by the other side in that very moment.
IDLE_SECONDS = 20.0
# Everything that means "the other side or the way to it failed", never "the request was wrong".
_NETWORK_ERRORS = (OSError, http.client.HTTPException)


class TransportError(RuntimeError):
    """A request that was answered with an error, or not at all (status None)."""

    def __init__(self, status: int | None, code: str, detail: str) -> None:
        super().__init__(detail if status is None else f"{detail} (HTTP {status}, {code})")
        self.status = status
        self.code = code
        self.detail = detail

    @property
    def transient(self) -> bool:
        """True where the same request may succeed a moment later; after a 401 with the key of a new registration."""
        return self.status is None or self.status >= 500 or self.status in (401, 408, 425, 429)


@dataclass(frozen=True)
class Stream:
    """A body that is being read: the offset it starts at, and its chunks."""

    start: int
    chunks: Iterator[bytes]


class Exchange(Protocol):
    """Sends one request and answers the body of a 2xx, as `exchange` does."""

    def __call__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Path | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> bytes: ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed where a secret is sent: urllib would carry the header to the new host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | Path | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> bytes:
    """Send one request, answer the body of a 2xx. Raises TransportError for everything else."""
    with contextlib.ExitStack() as stack:
        sent = dict(headers)
        data: Any = body
        if isinstance(body, Path):
            data = stack.enter_context(body.open("rb"))
            sent["Content-Length"] = str(body.stat().st_size)
        request = urllib.request.Request(url, data=data, headers=sent, method=method)
        response = stack.enter_context(_open(request, timeout, _NoRedirect()))
        return b"".join(_chunks(response, url))


class Lines:
    """Kept connections of one thread, one for each origin: a new one to a store costs two or three round trips.

    Only for requests that may be repeated: one that met the end of a kept connection is sent again. `beat` is called
    whenever a part of a body has gone out.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self._beat = beat
        self._kept: dict[str, tuple[http.client.HTTPConnection, float]] = {}

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Path | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> bytes:
        """Send one request, answer the body of a 2xx. Raises TransportError for everything else."""
        parts = urllib.parse.urlsplit(url)
        if isinstance(body, Path) or _needs_opener(parts):
            return exchange(method, url, headers, body, timeout)
        kept, used = self._kept.pop(_origin(url), (None, 0.0))
        if kept is not None and time.monotonic() - used < IDLE_SECONDS:
            with contextlib.suppress(*_NETWORK_ERRORS):
                return self._sent(kept, method, url, headers, body, timeout)
        if kept is not None:
            kept.close()
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            return self._sent(make(parts.netloc.rpartition("@")[2]), method, url, headers, body, timeout)
        except _NETWORK_ERRORS as error:
            raise TransportError(None, "unreachable", f"{_origin(url)} did not answer: {_reason(error)}") from error

    def _sent(
        self,
        line: http.client.HTTPConnection,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> bytes:
        parts = urllib.parse.urlsplit(url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        sized = headers if body is None else {**headers, "Content-Length": str(len(body))}
        try:
            line.timeout = timeout
            if line.sock is not None:
                line.sock.settimeout(timeout)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # Who refuses a large body may answer and hang up before the end of it: the answer is what counts.
                line.request(method, target, self._parts(body), sized)
            response = line.getresponse()
            answer = response.read()
        except BaseException:
            line.close()
            raise
        if response.will_close:
            line.close()
        else:
            self._kept[_origin(url)] = (line, time.monotonic())
        if not 200 <= response.status < 300:
            raise _problem(response.status, response.reason, answer)
        return answer

    def _parts(self, body: bytes | None) -> bytes | Iterator[bytes] | None:
        """A body in parts where it is large, so that a slow line shows that it moves."""
        if body is None or len(body) <= CHUNK_BYTES:
            return body
        return self._beating(body)

    def _beating(self, body: bytes) -> Iterator[bytes]:
        for start in range(0, len(body), CHUNK_BYTES):
            yield body[start : start + CHUNK_BYTES]
            self._beat()


def _needs_opener(parts: urllib.parse.SplitResult) -> bool:
    """Whether urllib must have its say: an address that is none of HTTP's, or a proxy on the way to it."""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return True
    if _is_loopback(parts.hostname):
        return False
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname)


@contextlib.contextmanager
def open_stream(url: str, offset: int = 0, timeout: float = TIMEOUT_SECONDS) -> Iterator[Stream]:
    """GET a (signed) URL from `offset` on; the server may answer from 0 instead. Raises TransportError, also midway."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    request = urllib.request.Request(url, headers=headers)
    with _open(request, timeout) as response:
        yield Stream(_start_of(response), _chunks(response, url))


@contextlib.contextmanager
def interruptible(
    source: Callable[[], AbstractContextManager[Stream]], pause: Callable[[float], None]
) -> Iterator[Stream]:
    """The stream that `source` opens, read by a thread of its own: `pause` may raise while the peer says nothing.

    The thread of an interrupted wait ends by itself, at the latest with the request's own timeout.
    """
    reader = _Reader(source)
    reader.start()
    try:
        start = reader.take(pause)
        yield Stream(start, iter(lambda: reader.take(pause), None))
    finally:
        reader.left.set()


class _Reader(threading.Thread):
    """Hands over the stream's start, then its chunks, then None; or the exception that ended it."""

    def __init__(self, source: Callable[[], AbstractContextManager[Stream]]) -> None:
        super().__init__(name="troupe-download", daemon=True)
        self.left = threading.Event()
        self._source = source
        self._handed: queue.Queue[Any] = queue.Queue(CHUNKS_AHEAD)

    def run(self) -> None:
        try:
            with self._source() as stream:
                self._hand_over(stream.start)
                for chunk in stream.chunks:
                    if self.left.is_set():
                        return
                    self._hand_over(chunk)
            self._hand_over(None)
        except Exception as error:  # whatever it is, the one who waits has to know
            self._hand_over(error)

    def take(self, pause: Callable[[float], None]) -> Any:
        while True:
            pause(0.0)
            with contextlib.suppress(queue.Empty):
                handed = self._handed.get(timeout=LOOK_EVERY_SECONDS)
                if isinstance(handed, Exception):
                    raise handed
                return handed

    def _hand_over(self, thing: Any) -> None:
        while not self.left.is_set():
            with contextlib.suppress(queue.Full):
                self._handed.put(thing, timeout=LOOK_EVERY_SECONDS)
                return


def retrying(
    call: Callable[[], T],
    pause: Callable[[float], None] = time.sleep,
    attempts: int = 6,
    base: float = 0.4,
    cap: float = 8.0,
) -> T:
    """Call until it succeeds; after a transient TransportError wait up to base * 2^n seconds (full jitter), then again.

    `pause(seconds)` waits; a host's pause raises when the prompt is interrupted.
    """
    for attempt in range(attempts):
        try:
            return call()
        except TransportError as error:
            if not error.transient or attempt == attempts - 1:
                raise
        ceiling = min(cap, base * 2**attempt)
        pause(random.uniform(ceiling / 4, ceiling))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _open(
    request: urllib.request.Request, timeout: float, *handlers: urllib.request.BaseHandler
) -> http.client.HTTPResponse:
    """Send the request and read the answer's head; its body is the caller's to read and to close."""
    url = request.full_url
    try:
        response: http.client.HTTPResponse = _opener(url, *handlers).open(request, timeout=timeout)
        return response
    except urllib.error.HTTPError as error:
        raise _problem_of(error) from error
    except _NETWORK_ERRORS as error:
        raise TransportError(None, "unreachable", f"{_origin(url)} did not answer: {_reason(error)}") from error


def _opener(url: str, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # urllib would also read file: and ftp: addresses.
        raise TransportError(400, "bad_url", f"not an http(s) address: {_origin(url)}")
    if _is_loopback(parts.hostname):
        # A proxy from the environment must not stand between two processes of one machine.
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
    return urllib.request.build_opener(*handlers)


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _start_of(response: http.client.HTTPResponse) -> int:
    if response.status != 206:
        return 0
    stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if stated is None:
        raise TransportError(502, "bad_range", "the server answered a range request without Content-Range")
    return int(stated[1])


def _chunks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except _NETWORK_ERRORS as error:
            raise TransportError(None, "cut_off", f"{_origin(url)} was cut off: {_reason(error)}") from error
        if not chunk:
            break
        yield chunk
    if response.length:
        # http.client reports a short body only where it is read in one piece.
        raise TransportError(None, "cut_off", f"{_origin(url)} was cut off {response.length} bytes before the end")


def _problem_of(error: urllib.error.HTTPError) -> TransportError:
    with error:
        try:
            body = error.read(65536)
        except _NETWORK_ERRORS:
            body = b""
    return _problem(error.code, str(error.reason), body)


def _problem(status: int, reason: str, body: bytes) -> TransportError:
    """The RFC 9457 document of an error answer where there is one, else its first line."""
    code, detail = "http_error", ""
    try:
        document = json.loads(body)
        code = str(document.get("code") or code)
        detail = str(document.get("detail") or document.get("title") or "")
    except (ValueError, AttributeError):
        detail = body.decode("utf-8", "replace").strip().split("\n", 1)[0][:200]
    return TransportError(status, code, detail or reason)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return str(inner) or type(inner).__name__


def _origin(url: str) -> str:
    """Scheme and host only: the rest of a signed URL is a secret and must not reach a log."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

"""The Hugging Face hub's file routes on loopback, with a second server as its CDN; faults are asked for by the test.

Contract: `huggingface_hub` 2.4.0's own reading of the answers (`get_hf_file_metadata`, `http_get`), 2026-11.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class Asked:
    """One request as a server saw it."""

    server: str
    method: str
    path: str
    range: str
    authorization: str


@dataclass
class HubDouble:
    """What the hub holds and how it misbehaves. Large files (`lfs`) are redirected to the CDN, small ones are not."""

    lfs: dict[str, bytes] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    bytes_per_second: int = 0
    ignores_ranges: bool = False
    serves_instead: bytes | None = None
    asked: list[Asked] = field(default_factory=list)
    endpoint: str = ""
    cdn: str = ""

    def bodies_asked(self) -> list[Asked]:
        return [request for request in self.asked if request.method == "GET" and request.server == "cdn"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubDouble
    name: str

    def log_message(self, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.name == "hub" and not _RESOLVE.fullmatch(self.path):
            self._send(404)  # what the client asks for purposes of its own is no part of a test
            return
        self.hub.asked.append(
            Asked(
                self.name,
                self.command,
                self.path,
                self.headers.get("Range", ""),
                self.headers.get("Authorization", ""),
            )
        )
        if self.name == "cdn":
            self._send_file(self.hub.lfs[self.path.removeprefix("/blob/")])
        else:
            self._resolve()

    def _resolve(self) -> None:
        if self.hub.busy:
            return self._send(self.hub.busy.pop(0))
        found = _RESOLVE.fullmatch(self.path)
        assert found is not None
        name = f"{found['repo']}/{found['file']}"
        if refusal := self.hub.refusals.get(name):
            return self._send(refusal[0], {"X-Error-Code": refusal[1]} if refusal[1] else {})
        if name in self.hub.lfs:
            content = self.hub.lfs[name]
            return self._send(
                302,
                {
                    "Location": f"{self.hub.cdn}/blob/{name}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                    "X-Linked-Size": str(len(content)),
                },
            )
        if name in self.hub.small:
            content = self.hub.small[name]
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._send_file(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{git}"'})
        return self._send(404, {"X-Error-Code": "EntryNotFound"})

    def _send(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not self.hub.ignores_ranges else 0
        if self.hub.serves_instead is not None and self.command == "GET":
            content = self.hub.serves_instead
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self._send_body(content[start:])

    def _send_body(self, body: bytes) -> None:
        if self.hub.cut_after:
            self.wfile.write(body[: self.hub.cut_after.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        step = max(1, self.hub.bytes_per_second // 20) if self.hub.bytes_per_second else len(body)
        for at in range(0, len(body), step or 1):
            try:
                self.wfile.write(body[at : at + step])
                self.wfile.flush()
            except OSError:  # the client was killed: that is the test
                self.close_connection = True
                return
            if self.hub.bytes_per_second:
                time.sleep(1 / 20)


@contextmanager
def hub_double() -> Iterator[HubDouble]:
    """A hub and its CDN, each on a port of its own, for as long as the block lasts."""
    hub = HubDouble()
    servers = []
    for name in ("hub", "cdn"):
        handler = type(f"{name}Handler", (_Handler,), {"hub": hub, "name": name})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()

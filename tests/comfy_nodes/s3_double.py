"""A small S3 store on loopback for tests: path-style PUT only, and every SigV4 signature is checked by hand.

moto's server would be another dependency and accepts forged signatures.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ACCESS_KEY, SECRET_KEY, REGION = "AKIDTROUPETESTS", "s3cret-of-the-bucket", "eu-test-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": REGION}
_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+), SignedHeaders=([^,]+), Signature=([0-9a-f]{64})")


class S3Double:
    """The objects it was given by `bucket/key`, the headers they came with, and faults to order."""

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.faults: list[int] = []
        self.puts = 0

    def put(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        """Status and error code of one PUT; header names are in lower case."""
        self.puts += 1
        if self.faults:
            return self.faults.pop(0), "SlowDown"
        if not signed(path, headers, body):
            return 403, "SignatureDoesNotMatch"
        self.objects[path.lstrip("/")], self.headers[path.lstrip("/")] = body, headers
        return 200, ""


def signed(path: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether the request carries our key's SigV4 signature over its path, its signed headers and its body."""
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if found is None or headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
        return False
    access_key, *scope = found[1].split("/")
    canonical_headers = "".join(f"{name}:{headers[name].strip()}\n" for name in found[2].split(";"))
    request = f"PUT\n{path}\n\n{canonical_headers}\n{found[2]}\n{headers['x-amz-content-sha256']}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{'/'.join(scope)}\n{digest}"
    key = f"AWS4{SECRET_KEY}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, text.encode(), "sha256").hex()
    return access_key == ACCESS_KEY and scope[1:] == [REGION, "s3", "aws4_request"] and expected == found[3]


@contextmanager
def s3_double() -> Iterator[S3Double]:
    """The store on a free port."""
    double = S3Double()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            status, code = double.put(self.path, headers, body)
            answer = f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode() if code else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)

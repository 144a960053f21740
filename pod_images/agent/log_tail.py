"""The end of ComfyUI's log, kept in memory, and the taking out of secrets from any line that is kept or written."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable

KEPT_LINES = 2000
LONGEST_LINE = 2000
SHORTEST_SECRET = 6
"""What is shorter guards nothing, and taking it out would garble every line."""
# Not a secret of ours, but one for whoever may use the address until it expires.
_SIGNED = re.compile(r"(?i)\b(sig|signature|x-amz-signature|x-amz-credential|x-amz-security-token)=[^&\s\"']+")


class Redactor:
    """Knows this agent's secrets and takes them out of texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: list[str] = []
        for secret in secrets:
            self.learn(secret)

    def learn(self, secret: str) -> None:
        """From now on this is a secret too."""
        if len(secret) >= SHORTEST_SECRET and secret not in self._secrets:
            self._secrets.append(secret)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _SIGNED.sub(r"\1=***", text)


class RedactingFormatter(logging.Formatter):
    """Formats a record, traceback included, without secrets."""

    def __init__(self, format: str, redactor: Redactor) -> None:
        super().__init__(format)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor(super().format(record))


class LogTail:
    """The last lines that a process printed. A progress bar, which rewrites its line, keeps its last state only."""

    def __init__(self, redactor: Redactor, lines: int = KEPT_LINES) -> None:
        self._redactor = redactor
        self._lines: deque[str] = deque(maxlen=lines)
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """Takes what was printed and returns the lines it completes."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        # Only what follows the last return is on the screen; a bar without an end must not grow for ever.
        self._rest = rest[-8 * LONGEST_LINE :]
        lines = [line for raw in whole if (line := self._shown(raw))]
        self._lines.extend(lines)
        return lines

    def note(self, line: str) -> None:
        """Adds a line of the agent's own, such as where one process ends and the next begins."""
        self.feed(b"\n")
        self._lines.append(self._redactor(line)[:LONGEST_LINE])

    def last(self, count: int) -> list[str]:
        """The newest lines, oldest first; a line that is still being written counts."""
        lines = [*self._lines, *([self._shown(self._rest)] if self._shown(self._rest) else [])]
        return lines[-count:] if count > 0 else []

    def _shown(self, raw: bytes) -> str:
        states = [part for part in raw.replace(b"\x1b[K", b"").split(b"\r") if part.strip()]
        text = states[-1].decode(errors="replace").rstrip() if states else ""
        return self._redactor(text)[:LONGEST_LINE]

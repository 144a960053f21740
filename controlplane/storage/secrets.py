"""Secrets of this installation: given by the operator, else made on first start and kept beside the data."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.settings import Settings


@dataclass(frozen=True)
class Secrets:
    """``join_token`` lets a pod register, ``signing_key`` signs links to files."""

    join_token: str = field(repr=False)
    signing_key: str = field(repr=False)


def load_secrets(settings: Settings) -> Secrets:
    """The secrets in force; what the operator did not set is read from, or made in, ``<data>/secrets.json``."""
    given = {
        "join_token": settings.join_token.get_secret_value() if settings.join_token else "",
        "signing_key": settings.signing_key.get_secret_value() if settings.signing_key else "",
    }
    if all(given.values()):
        return Secrets(**given)
    kept = _kept(settings.data.resolve() / "secrets.json")
    return Secrets(**{name: value or kept[name] for name, value in given.items()})


def _kept(path: Path) -> dict[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        made = {"join_token": secrets.token_urlsafe(32), "signing_key": secrets.token_urlsafe(32)}
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        # Readable by the owner alone from its first moment on.
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(made, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)  # the first of two starting processes wins, both read the same
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    found = json.loads(path.read_text())
    return {name: str(found[name]) for name in ("join_token", "signing_key")}

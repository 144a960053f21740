"""The example of docs/webhooks.md: it runs, takes what we send and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.webhooks import new_secret
from controlplane.services.webhook_bodies import message
from controlplane.services.webhook_sending import signed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "webhooks.md"
SECRET = new_secret()
BODY = message("job.succeeded", 0.0, {"job": {"assets": [{"url": "https://troupe.example/a.png"}]}})


@pytest.fixture(scope="module")
def receive() -> Callable[..., int]:
    """The function that the page shows."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(PAGE), "exec"), names)
    found: Callable[..., int] = names["receive"]
    return found


def headers(*secrets: str, at: float | None = None) -> dict[str, str]:
    return signed("msg_1", BODY, secrets, time.time() if at is None else at)


def test_it_takes_what_we_send(receive: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert receive(SECRET, BODY.encode(), headers(SECRET), set()) == 204
    assert capsys.readouterr().out == "https://troupe.example/a.png\n"


def test_it_does_nothing_twice(receive: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert receive(SECRET, BODY.encode(), headers(SECRET), {"msg_1"}) == 204
    assert capsys.readouterr().out == ""


def test_it_takes_either_secret_of_a_rotation(receive: Callable[..., int]) -> None:
    both = headers(new_secret(), SECRET)
    assert receive(SECRET, BODY.encode(), both, set()) == 204


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (BODY.replace("a.png", "b.png"), headers(SECRET)),
        (BODY, headers(new_secret())),
        (BODY, headers(SECRET, at=time.time() - 400)),
        (BODY, {**headers(SECRET), "webhook-id": "msg_2"}),
        (BODY, {}),
    ],
    ids=["another body", "another secret", "an old message", "another id", "no signature"],
)
def test_it_refuses_anything_else(receive: Callable[..., int], body: str, told: dict[str, str]) -> None:
    assert receive(SECRET, body.encode(), told, set()) == 401

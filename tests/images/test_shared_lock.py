"""A lock on a shared disk is held by one, given up by the dead, and never robbed from the living."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from pod_images.shared_lock import LockLostError, Patience, Waiting, hold

QUICK = Patience(beat=0.05, dead=1.0, poll=0.02)


def wait_quietly(_seen: Waiting) -> None:
    return


def test_a_lock_is_gone_when_its_block_ends(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with hold(lock, QUICK, wait_quietly):
        assert lock.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_dead_owners_lock_is_taken_over_and_no_grave_is_left(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text('{"owner": "gone:1:aa", "beat": 3}')
    seen: list[Waiting] = []
    with hold(lock, QUICK, seen.append):
        pass
    assert {waiting.owner for waiting in seen} == {"gone:1:aa"}
    assert list(tmp_path.iterdir()) == []


def test_a_living_owner_keeps_its_lock_however_long_the_other_waits(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    order: list[str] = []

    def second() -> None:
        with hold(lock, QUICK, wait_quietly):
            order.append("second")

    with hold(lock, QUICK, wait_quietly):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(2 * QUICK.dead)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_an_owner_whose_lock_was_taken_over_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with hold(lock, QUICK, wait_quietly) as held:
        lock.unlink()
        lock.write_text('{"owner": "other:2:bb", "beat": 1}')
        time.sleep(4 * QUICK.beat)
        with pytest.raises(LockLostError):
            held.check()
    assert lock.read_text() == '{"owner": "other:2:bb", "beat": 1}'


def test_who_waits_may_give_up(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.touch()

    def give_up(_seen: Waiting) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), hold(lock, QUICK, give_up):
        pass
    assert os.listdir(tmp_path) == ["x.lock"]


def test_a_disk_too_full_for_a_beat_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"), hold(tmp_path / "x.lock", QUICK, wait_quietly):
        pass
    assert list(tmp_path.iterdir()) == []

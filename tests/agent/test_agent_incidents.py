"""What the agent remembers of prompts: which are still somebody's to collect."""

from __future__ import annotations

from pod_images.agent.incidents import Ledger


def test_a_result_is_waited_for_until_its_owner_has_had_the_time() -> None:
    ledger = Ledger()
    ledger.took("a")
    assert [ledger.awaits(at, 900.0) for at in (100.0, 999.0, 1000.0)] == [True, True, False]


def test_a_collected_result_is_not_waited_for() -> None:
    ledger = Ledger()
    ledger.took("a")
    ledger.relieved(["a"])
    assert not ledger.awaits(0.0, 900.0)

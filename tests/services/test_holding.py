"""Orders for held jobs: which of them reach a job whose row says more than this process knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from controlplane.domain.ids import new_prompt_id
from controlplane.domain.jobs import COLLECTING, Attempt
from controlplane.services.holding import Held
from tests.comfy.comfyui_double import ComfyUIDouble
from tests.services.engine import PROJECT, engine


@pytest.mark.parametrize(("finished_here", "order"), [(False, "moved"), (True, None)])
async def test_a_job_taken_over_while_its_files_travelled_hears_that_its_pod_moved_until_it_collects_them_itself(
    double: ComfyUIDouble, tmp_path: Path, finished_here: bool, order: str | None
) -> None:
    async with engine(tmp_path) as room:
        pod, _ = await room.register(double)
        job = await room.submit()
        attempt = Attempt(new_prompt_id(), PROJECT, job.id, 1, pod.id, new_prompt_id(), "running", room.clock.now())
        held = Held(job, dataclasses.replace(attempt, status=COLLECTING), pod, resumed=True, sent=True)
        if finished_here:
            held.reach(COLLECTING)
        held.give("moved")
    assert held.order == order

"""The pack as a whole: what importing it does, what leaves a node, and the travelling prompt."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import comfy_nodes
from comfy_nodes import host as host_seam
from comfy_nodes.boundary import contained, never_the_same, ui
from comfy_nodes.prompt_travel_sampler import PromptTravelSampler, travelled

PACK = Path(comfy_nodes.__file__).parent


def test_importing_the_pack_imports_neither_torch_nor_comfyui() -> None:
    code = "import sys, comfy_nodes; print([n for n in ('torch', 'comfy', 'diffusers', 'av') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pack_works_under_any_folder_name(tmp_path: Path) -> None:
    (tmp_path / "troupe").symlink_to(PACK)
    code = "import troupe; print(sorted(troupe.NODE_CLASS_MAPPINGS))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['CharacterLoRALoader', 'PromptTravelSampler', 'S3Save', 'TrainLoRA']"


def test_installing_the_pack_brings_boto3_and_nothing_else() -> None:
    wanted = tomllib.loads((PACK / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [requirement.partition(">")[0] for requirement in wanted] == ["boto3"]
    lines = (PACK / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == wanted


@pytest.mark.parametrize("node", comfy_nodes.NODE_CLASS_MAPPINGS.values())
def test_every_node_describes_itself_in_json(node: Any) -> None:
    described = json.loads(json.dumps(node.INPUT_TYPES(), allow_nan=False))
    assert callable(getattr(node, node.FUNCTION))
    assert described["required"]


def test_outside_every_host_a_node_says_so() -> None:
    host_seam.set_host(None)
    with pytest.raises(RuntimeError, match="neither is here"):
        host_seam.current_host()


@pytest.mark.parametrize("exit_request", [SystemExit(2), KeyboardInterrupt(), GeneratorExit()])
def test_nothing_that_ends_a_worker_leaves_a_node(exit_request: BaseException) -> None:
    @contained
    def node() -> None:
        raise exit_request

    with pytest.raises(RuntimeError, match="tried to end the process"):
        node()


def test_the_hosts_interrupt_passes_through() -> None:
    class InterruptProcessingException(Exception):
        pass

    @contained
    def node() -> None:
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        node()


@pytest.mark.parametrize("value", [torch.zeros(1), math.nan, {1, 2}, b"bytes"])
def test_what_is_not_json_never_reaches_the_ui(value: Any) -> None:
    with pytest.raises(RuntimeError, match="not JSON"):
        ui(assets=[{"value": value}])


def test_a_node_that_must_always_run_is_never_the_same_even_by_identity() -> None:
    assert never_the_same() is not never_the_same()
    assert (never_the_same(),) != (never_the_same(),)


def test_unknown_members_are_left_out_of_the_ui() -> None:
    assert ui(assets=[{"id": "a", "fps": None}]) == {"assets": [{"id": "a"}]}


def travel(frames: int, steps: int = 2) -> torch.Tensor:
    latent = {"samples": torch.full((2, 16, 4, 4), 5.0)}
    (moving,) = PromptTravelSampler().travel(None, 0.0, 1.0, 0.0, latent, frames, 100, steps, 4.0, 0.5)
    samples: torch.Tensor = moving["samples"]
    return samples


def test_the_first_frame_is_the_given_latent(folder_host: Any) -> None:
    assert torch.equal(travel(8)[0], torch.full((16, 4, 4), 5.0))


def test_every_other_frame_is_sampled_from_that_latent_with_the_blended_prompt(folder_host: Any) -> None:
    moved = travel(8)[:, 0, 0, 0] - 105.0
    assert moved[1:].tolist() == pytest.approx([travelled(frame, 8) for frame in range(1, 8)], abs=1e-4)


def test_the_prompt_travels_smoothly_there_and_back() -> None:
    way = [travelled(frame, 16) for frame in range(17)]
    assert (way[0], way[8], way[16]) == pytest.approx((0, 1, 0))
    assert max(abs(after - before) for before, after in pairwise(way)) < 0.2


def test_the_bar_of_a_travel_ends_full(folder_host: Any) -> None:
    travel(4, steps=3)
    assert folder_host.shown[-1][:2] == (9, 9)


def test_an_interrupt_stops_a_travel(folder_host: Any) -> None:
    folder_host.interrupt.set()
    with pytest.raises(folder_host.Interrupted):
        travel(4)

"""kohya's names for the layers of a base, from the base's header alone: against the LoRAs that sd-scripts wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_nodes.training.failure import TrainerError
from comfy_nodes.training.kohya_layers import layer_names
from tests.comfyui.random_checkpoint import write

DATA = Path(__file__).with_name("data")


def written(name: str) -> frozenset[str]:
    return frozenset((DATA / f"{name}.modules.txt").read_text().split())


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, frozenset[str]]:
    """The layer names of both full-size bases, whose values are a hole in the file."""
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for architecture in ("sd15", "sdxl"):
        path = folder / f"{architecture}.safetensors"
        write(architecture, "fp16", path, values=False)
        found[architecture] = layer_names(path)
        path.unlink()
    return found


@pytest.mark.parametrize(("architecture", "run", "modules"), [("sdxl", "sdxl_b", 722), ("sd15", "sd15_a", 264)])
def test_every_module_that_sd_scripts_trained_is_a_layer_of_its_base(
    architecture: str, run: str, modules: int, names: dict[str, frozenset[str]]
) -> None:
    assert len(written(run) & names[architecture]) == len(written(run)) == modules


def test_sd15_has_no_layer_that_sd_scripts_would_not_train(names: dict[str, frozenset[str]]) -> None:
    assert names["sd15"] == written("sd15_a")


def test_a_lora_of_the_other_base_has_no_place(names: dict[str, frozenset[str]]) -> None:
    assert not written("sd15_a") & names["sdxl"]
    assert not written("sdxl_b") & names["sd15"]


def test_both_text_encoders_of_sdxl_are_known(names: dict[str, frozenset[str]]) -> None:
    counted = [sum(name.startswith(prefix) for name in names["sdxl"]) for prefix in ("lora_te1_", "lora_te2_")]
    assert counted == [12 * 6, 32 * 6]


def test_a_file_that_is_no_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(TrainerError, match="bad_checkpoint"):
        layer_names(path)

"""An artist's desktop: an export tried straight on a real ComfyUI, and its picture imported as a workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from controlplane.cli.entry import main
from controlplane.comfy.sync_runner import SyncRunner
from controlplane.workflows import graph as graphs
from controlplane.workflows import object_info, sources
from tests.workflows.exports import FACTS, imported, node, portrait
from tests.workflows.record_object_info import CLASSES, reduced

from .server import ComfyUI


def small() -> dict[str, Any]:
    graph = portrait()
    graph["3"]["inputs"]["steps"] = 2
    return graph


def tried(comfyui: ComfyUI, folder: Path, graph: dict[str, Any], *options: str) -> int:
    path = folder / "export.json"
    path.write_text(json.dumps(graph))
    out = str(folder / "out")
    return main(["workflows", "try", str(path), "--comfyui", comfyui.address, "--out", out, *options])


def test_an_export_runs_and_its_picture_is_saved(comfyui: ComfyUI, tmp_path: Path) -> None:
    assert tried(comfyui, tmp_path, small(), "--set", "seed=4", "--set", "5.width=64") == 0
    assert [Image.open(path).size for path in (tmp_path / "out").iterdir()] == [(64, 96)]


def test_a_picture_beside_the_export_is_uploaded(comfyui: ComfyUI, tmp_path: Path) -> None:
    Image.new("RGB", (40, 24), "green").save(tmp_path / "my start.png")
    graph = {
        "1": node("LoadImage", image="my start.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="uploaded"),
    }
    assert tried(comfyui, tmp_path, graph) == 0
    assert [Image.open(path).size for path in (tmp_path / "out").iterdir()] == [(40, 24)]


def test_a_video_is_saved_whatever_key_it_is_under(comfyui: ComfyUI, tmp_path: Path) -> None:
    graph = {
        "1": node("EmptyImage", width=64, height=64, batch_size=4, color=255),
        "2": node("SaveAnimatedWEBP", images=["1", 0], filename_prefix="moving", fps=6.0, lossless=True, quality=80,
                  method="default"),
    }  # fmt: skip
    assert tried(comfyui, tmp_path, graph) == 0
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".webp"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"4": node("CheckpointLoaderSimple", ckpt_name="none.safetensors")}, "none.safetensors"),
        ({"8": node("NodeOfNoPack", samples=["3", 0])}, "Install the node pack"),
    ],
)
def test_what_comfyui_refuses_is_told_as_a_sentence(
    comfyui: ComfyUI, tmp_path: Path, capsys: Any, change: Any, words: str
) -> None:
    assert tried(comfyui, tmp_path, {**small(), **change}) == 1
    assert words in capsys.readouterr().err


def test_a_picture_that_comfyui_made_is_an_export(comfyui: ComfyUI, tmp_path: Path) -> None:
    tried(comfyui, tmp_path, small(), "--set", "seed=11")
    source = sources.read(next((tmp_path / "out").iterdir()).read_bytes())
    runner = SyncRunner(comfyui.address)
    facts = object_info.read(runner.object_info(sorted(graphs.node_classes(graphs.parse(source.graph)))))
    template = imported(source.graph, facts=facts, insert_character=True).template
    assert (template.base, template.inputs["prompt"].targets[0].node) == ("sketch", "6")


def test_an_imported_graph_is_accepted_by_comfyui(comfyui: ComfyUI, tmp_path: Path) -> None:
    graph = graphs.to_api(imported(small()).template.graph)
    assert tried(comfyui, tmp_path, graph, "--set", "prompt=a dog", "--set", "seed=12") == 0


def test_the_recorded_facts_are_those_of_this_version(comfyui: ComfyUI) -> None:
    runner = SyncRunner(comfyui.address)
    if runner.object_info(["SaveVideo"]) == {} or _version(runner) != "0.8.0":
        pytest.skip("recorded from ComfyUI 0.8.0")
    told = runner.object_info(CLASSES)
    now = object_info.read({name: reduced(entry) for name, entry in told.items()})
    assert {name: one for name, one in FACTS.items() if now[name] != one} == {}


def _version(runner: SyncRunner) -> str:
    return str(runner._get("/system_stats")["system"]["comfyui_version"])

"""Every shipped template against two versions of ComfyUI: as recorded always, as it runs where COMFYUI_DIR is set."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from controlplane.workflows import template as template_files
from controlplane.workflows.binding import bind
from controlplane.workflows.catalog import Catalog
from tests.comfyui.server import NO_COMFYUI, ComfyUI, checkout, start_comfyui

from .agreement import disagreements, pack_info
from .record_object_info import DATA, TEMPLATES, recorded_from, version_of

CATALOG = Catalog.load(TEMPLATES)
NAMES = sorted(CATALOG.templates)
VERSIONS = ("0.3.64", "0.8.0")


def recorded(version: str) -> dict[str, Any]:
    core: dict[str, Any] = json.loads((DATA / f"object_info_{version}.json").read_text("utf-8"))
    return {**core, **pack_info()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_template_fits_the_recorded_nodes(name: str, version: str) -> None:
    assert disagreements(CATALOG.template(name), recorded(version)) == []


def changed(graph: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What is found in svd_video after fields of its graph and manifest were overwritten."""
    folder = TEMPLATES / "svd_video"
    raw_graph = json.loads((folder / "graph.json").read_text("utf-8"))
    raw_manifest = yaml.safe_load((folder / "manifest.yaml").read_text("utf-8"))
    for place, value in graph.items():
        node, field = place.split(".")
        target = raw_graph[node] if field == "class_type" else raw_graph[node]["inputs"]
        target[field] = value
    for place, value in manifest.items():
        group, key, field = place.split(".")
        raw_manifest[group][key][field] = value
    raw_manifest["needs"]["nodes"] = sorted({node["class_type"] for node in raw_graph.values()})
    return disagreements(template_files.build(raw_graph, raw_manifest), recorded("0.8.0"))


FAULTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"13.class_type": "VAEDecodeNow"}, {}, "13: there is no class VAEDecodeNow"),
    ({"13.tiles": 4}, {}, "13 VAEDecode: there is no input tiles"),
    ({"12.sampler_name": "euler_9"}, {}, "12 KSampler: sampler_name 'euler_9' is no choice"),
    ({"12.denoise": 1.5}, {}, "12 KSampler: denoise 1.5 is out of range"),
    ({"12.denoise": True}, {}, "12 KSampler: denoise True is no FLOAT"),
    ({"14.quality": 90.5}, {}, "14 S3Save: quality 90.5 is no INT"),
    ({"13.vae": ["9", 1]}, {}, "13 VAEDecode: vae takes VAE, which slot 1 of ImageOnlyCheckpointLoader is not"),
    ({"13.vae": ["9", 7]}, {}, "13 VAEDecode: vae takes VAE, which slot 7 of ImageOnlyCheckpointLoader is not"),
    ({"13.samples": "noise"}, {}, "13 VAEDecode: samples takes LATENT, not the value 'noise'"),
    (
        {"9.ckpt_name": "svd_other.safetensors"},
        {},
        "9 ImageOnlyCheckpointLoader: ckpt_name the file 'svd_other.safetensors' is not among the models that the "
        "template needs",
    ),
    ({}, {"inputs.frames.max": 5000}, "input frames: 14 to 5000 is more than 1 to 4096"),
    ({}, {"inputs.frames.max": None}, "input frames: has no range"),
    ({}, {"inputs.still_width.step": 4}, "input still_width: does not keep to steps of 8"),
    ({}, {"inputs.steps.type": "number"}, "input steps: a value of type number does not fit INT at steps"),
    ({}, {"inputs.format.options": ["mp4", "avi"]}, "input format: avi cannot be chosen at format"),
    ({}, {"inputs.format.options": []}, "input format: takes any text, but format has 5 choices"),
]


@pytest.mark.parametrize(("graph", "manifest", "found"), FAULTS, ids=[fault[2][:40] for fault in FAULTS])
def test_a_template_that_does_not_fit_is_found_out(graph: dict[str, Any], manifest: dict[str, Any], found: str) -> None:
    assert changed(graph, manifest) == [found]


def test_a_required_input_that_is_left_out_is_found_out() -> None:
    template = CATALOG.template("sdxl_image")
    info = recorded("0.8.0")
    info["VAEDecode"]["input"]["required"]["tile_size"] = ["INT", {}]
    assert disagreements(template, info) == ["7 VAEDecode: tile_size is required"]


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A ComfyUI with our pack that lists every model file by name; the files are empty, nothing is loaded from them."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    base = tmp_path_factory.mktemp("comfyui")
    for one in CATALOG.templates.values():
        for folder, names in one.needs.models.items():
            (base / "models" / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                (base / "models" / folder / name).touch()
    with start_comfyui(base) as running:
        (base / "input" / "still.png").write_bytes(b"")
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_template_fits_the_nodes_of_a_running_comfyui(comfyui: ComfyUI, name: str) -> None:
    assert disagreements(CATALOG.template(name), recorded_from(comfyui.address)) == []


def test_the_record_says_what_a_running_comfyui_says(comfyui: ComfyUI) -> None:
    version = version_of(comfyui.address)
    if version not in VERSIONS:
        pytest.skip(f"ComfyUI {version} has not been recorded; record it with tests/templates/record_object_info.py")
    live = recorded_from(comfyui.address)
    kept = json.loads((DATA / f"object_info_{version}.json").read_text("utf-8"))
    assert kept == {name: live[name] for name in kept}


@pytest.mark.parametrize("name", NAMES)
def test_a_running_comfyui_takes_the_example_of_a_shipped_template(comfyui: ComfyUI, name: str) -> None:
    """Its own validation is the judge; the run that follows fails at the empty model files, which is not looked at."""
    graph = bind(CATALOG.template(name), CATALOG.template(name).example).graph
    assert posted(comfyui, graph) == (200, {})


def test_a_running_comfyui_refuses_a_value_out_of_range(comfyui: ComfyUI) -> None:
    graph = json.loads(json.dumps(bind(CATALOG.template("svd_video"), CATALOG.template("svd_video").example).graph))
    graph["10"]["inputs"]["video_frames"] = 5000
    status, errors = posted(comfyui, graph)
    # 200: the still is an output that can be made; a client has to read node_errors, as ours does.
    assert (status, set(errors)) == (200, {"10"})


def posted(comfyui: ComfyUI, graph: Any) -> tuple[int, Any]:
    """Status and node errors of POST /prompt."""
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(comfyui.address + "/prompt", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)["node_errors"]
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["node_errors"]

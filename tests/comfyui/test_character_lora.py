"""CharacterLoRALoader in a real ComfyUI: what is applied, what is refused, what stays on disk and in memory."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_nodes.control_plane_double import POD_KEY, ControlPlaneServer, serving

from .conftest import SKETCH_CHECKPOINT
from .graphs import Graph, call, ended, picture, submit, words_of
from .loras import layer_shapes, lora
from .server import NO_COMFYUI, ComfyUI, checkout, start_comfyui

PROMPT = "nellq captain, portrait, smiling"


class Studio:
    """A ComfyUI that is a pod of the control-plane double beside it."""

    def __init__(self, comfyui: ComfyUI, control_plane: ControlPlaneServer) -> None:
        self.comfyui, self.control_plane = comfyui, control_plane
        self.cache = comfyui.base / "lora_cache"
        self._versions = 0

    def add(self, content: bytes, **changes: Any) -> dict[str, Any]:
        """A new version with this file; answers the loader's inputs for it."""
        self._versions += 1
        sha256 = self.control_plane.add_lora("nell", self._versions, content, **changes)
        return {"character_id": "nell", "version": self._versions, "strength": 1.0, "sha256": sha256}

    def end(self, graph: Graph) -> dict[str, Any]:
        """Run a graph as the job's current attempt; its history entry."""
        prompt_id = self.control_plane.attempt = str(uuid.uuid4())
        return ended(self.comfyui, submit(self.comfyui, graph, prompt_id))

    def paint(self, **options: Any) -> tuple[bytes, dict[str, Any]]:
        """The bytes of the picture that was handed over, and what the loader said."""
        entry = self.end(picture(PROMPT, **options))
        assert entry["status"]["status_str"] == "success", words_of(entry)
        saved = entry["outputs"]["7"]["assets"][0]
        key = saved["url"].rpartition("/")[2]
        content = self.control_plane.files[key]
        assert hashlib.sha256(content).hexdigest() == saved["sha256"]
        return content, entry["outputs"].get("9", {}).get("character", [{}])[0]

    def refusal(self, character: dict[str, Any]) -> str:
        """The words with which a prompt with this character failed."""
        return words_of(self.end(picture(PROMPT, character=character)))

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir()) if self.cache.exists() else []


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    base = tmp_path_factory.mktemp("studio")
    with serving(ControlPlaneServer("")) as control_plane:
        environment = {
            "TROUPE_CONTROL_PLANE_URL": control_plane.url,
            "TROUPE_POD_KEY": POD_KEY,
            "TROUPE_LORA_CACHE_DIR": str(base / "lora_cache"),
        }
        with start_comfyui(base, environment, checkpoints=[SKETCH_CHECKPOINT]) as comfyui:
            yield Studio(comfyui, control_plane)


def pixels_of(png: bytes) -> bytes:
    """The compressed pixels of a PNG as they lie in the file, without its text chunks."""
    position, found = 8, b""
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] == b"IDAT":
            found += png[position + 8 : position + 8 + length]
        position += 12 + length
    return found


def test_every_module_of_a_lora_finds_its_place(studio: Studio) -> None:
    _, said = studio.paint(character=studio.add(lora(1)))
    assert (said["matched"], said["total"]) == (len(layer_shapes()), len(layer_shapes()))


def test_a_lora_changes_the_picture(studio: Studio) -> None:
    plain, _ = studio.paint()
    painted, _ = studio.paint(character=studio.add(lora(2)))
    assert pixels_of(painted) != pixels_of(plain)


def test_strength_zero_is_the_picture_without_a_lora_byte_for_byte(studio: Studio) -> None:
    character = studio.add(lora(3))
    studio.paint(character=character)
    off, _ = studio.paint(character={**character, "strength": 0.0})
    assert pixels_of(off) == pixels_of(studio.paint()[0])


def test_switching_loras_and_back_gives_the_very_same_file(studio: Studio) -> None:
    one, other = studio.add(lora(4)), studio.add(lora(5))
    first, _ = studio.paint(character=one)
    between, _ = studio.paint(character=other)
    again, _ = studio.paint(character=one)
    assert first == again
    assert pixels_of(between) != pixels_of(first)


def test_what_is_resident_is_neither_downloaded_nor_read_again(studio: Studio) -> None:
    one, other = studio.add(lora(6)), studio.add(lora(7))
    first, _ = studio.paint(character=one)
    studio.paint(character=other)
    # Were the file read again, this would fail: the name stays, its bytes are no LoRA any more.
    (studio.cache / f"{one['sha256']}.safetensors").write_bytes(b"no longer a LoRA")
    again, _ = studio.paint(character=one)
    downloads = [name for name, _ in studio.control_plane.downloads if name.startswith(one["sha256"])]
    assert (again, len(downloads)) == (first, 1)


def test_a_partial_match_is_told(studio: Studio) -> None:
    _, said = studio.paint(character=studio.add(lora(8, layers=10, alien=3)))
    assert (said["matched"], said["total"]) == (10, 13)


def test_the_files_on_disk_are_told_in_the_state(studio: Studio) -> None:
    character = studio.add(lora(9))
    studio.paint(character=character)
    assert character["sha256"] in call(studio.comfyui, "/troupe/state")["loras"]


def test_a_lora_for_another_base_is_refused_by_the_names_of_both(studio: Studio) -> None:
    character = studio.add(lora(10, layers=0, alien=6, base="sdxl_base_v1-0"), base="sdxl")
    words = studio.refusal(character)
    assert f"nell version {character['version']} ({character['sha256'][:12]}) was trained for base sdxl" in words


BAD_FILES = {
    "truncated": (lora(11)[:-1000], "is truncated"),
    "truncated header": (lora(12)[:100], "is truncated within its header"),
    "zip pickle": (b"PK\x03\x04" + bytes(400), "is a pickle"),
    "pickle": (pickle.dumps({"lora_unet_a.alpha": [1.0] * 50}), "is a pickle"),
    "web page": (b"<html>" + b" sign in" * 100, "is not a safetensors file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_whole_lora_is_refused_with_a_reason(studio: Studio, kind: str) -> None:
    content, reason = BAD_FILES[kind]
    assert reason in studio.refusal(studio.add(content))


@pytest.mark.parametrize("kind", BAD_FILES)
def test_nothing_of_a_refused_file_is_left_behind(studio: Studio, kind: str) -> None:
    before = studio.on_disk()
    studio.refusal(studio.add(BAD_FILES[kind][0]))
    assert studio.on_disk() == before


def test_bytes_that_are_not_the_promised_ones_are_refused_and_leave_nothing(studio: Studio) -> None:
    character = studio.add(lora(13))
    name = f"{character['sha256']}.safetensors"
    studio.control_plane.files[name] = lora(14)
    before = studio.on_disk()
    assert "not what was promised" in studio.refusal(character)
    assert studio.on_disk() == before


def test_a_cut_download_is_resumed(studio: Studio) -> None:
    character = studio.add(lora(15))
    name = f"{character['sha256']}.safetensors"
    studio.control_plane.cuts[name] = [5000]
    studio.paint(character=character)
    assert [asked for file, asked in studio.control_plane.downloads if file == name] == ["", "bytes=5000-"]


def test_an_interrupt_reaches_a_download_that_stands_still(studio: Studio) -> None:
    character = studio.add(lora(16))
    studio.control_plane.slow_seconds = 60.0
    prompt_id = submit(studio.comfyui, picture(PROMPT, character=character))
    try:
        while not any(name.startswith(character["sha256"]) for name, _ in studio.control_plane.downloads):
            time.sleep(0.05)
        call(studio.comfyui, "/interrupt", {"prompt_id": prompt_id})
        started = time.monotonic()
        entry = ended(studio.comfyui, prompt_id)
    finally:
        studio.control_plane.slow_seconds = 0.0
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert time.monotonic() - started < 10


def test_a_repeated_request_saves_files_of_its_own(studio: Studio) -> None:
    first, _ = studio.paint(seed=21)
    before = len(studio.control_plane.uploads)
    again, _ = studio.paint(seed=21)
    assert (again, len(studio.control_plane.uploads)) == (first, before + 1)


def test_a_node_knows_the_prompt_it_works_for(studio: Studio) -> None:
    studio.paint()
    assert studio.control_plane.uploads[-1]["prompt_id"] == studio.control_plane.attempt


def test_no_secret_is_in_what_comfyui_shows(studio: Studio) -> None:
    studio.paint(character=studio.add(lora(17)))
    shown = io.StringIO()
    json.dump([call(studio.comfyui, path) for path in ("/history", "/queue", "/troupe/state")], shown)
    assert POD_KEY not in shown.getvalue()
    assert POD_KEY not in Path(studio.comfyui.log).read_text(errors="replace")
